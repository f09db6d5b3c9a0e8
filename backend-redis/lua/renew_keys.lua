-- uses: line, interop
-- Gives the keys that my session owns beside its places as long as the session has: some of them, in
-- the order of their tokens, from behind one. One that is not mine any more is lost, and its place with
-- it. Replies with the last token, or with nothing if there are no more; and with the nonces of what is lost.
local behind, most = ARGV[5], tonumber(ARGV[6])
in_any_case()
local refused = enter()
if refused then return refused end

local owned = redis.call('ZRANGEBYSCORE', root .. 'owned/' .. me, '(' .. behind, '+inf', 'WITHSCORES', 'LIMIT', 0, most)
local mine, answer = text(left(me)), {'ok', ''}
if #owned == 2 * most then
  answer[2] = text(tonumber(owned[#owned]))
end
for i = 1, #owned, 2 do
  local field, path = string.match(owned[i], '^([^:]+):(.*)$')
  local name, who = name_of(path), me .. ':' .. field
  -- The value as `value_of` has it, at a fraction of its cost.
  local value = redis.pcall('GET', name)
  if value == root .. path .. '#' .. who and redis.call('ZSCORE', root .. path, who .. ':w') then
    redis.call('PEXPIRE', name, mine)
  else
    free_place(path, me, field)
    answer[#answer + 1] = field
  end
end
return answer
