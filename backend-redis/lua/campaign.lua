-- uses: line, election
-- Takes a place in the election at `path` at its end, with what it stands for; once for each nonce.
local path, side, only_if_free, value = ARGV[5], ARGV[6], ARGV[7] == 'try', ARGV[8]
local refused = enter()
if refused then return refused end

local member = member_of(me, nonce, side)
local token = redis.call('ZSCORE', root .. path, member)
if token then
  return answer(path, member, side, tonumber(token))
end
local no = only_if_free and turned_away(path, side)
if no then
  return no
end
token = next_token()
redis.call('HSET', root .. path .. '/values', 'v' .. member, value)
add_place(path, member, side, token)
note(nonce, path)
if redis.call('ZRANK', root .. path, member) == 0 then
  tell_all(path)
end
return answer(path, member, side, token)
