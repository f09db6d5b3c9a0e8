-- uses: line
-- Makes the writer that I am at `path` under `token` a reader in its place, and tells the readers
-- right behind.
local path, token = ARGV[5], tonumber(ARGV[6])
in_any_case()
local refused = enter()
if refused then return refused end

local member, mine, side = my_place(path, nonce)
if mine ~= token or not standing(path, member, side, token) then
  return {'gone'}
end
if side == 'w' then
  local rank = redis.call('ZRANK', root .. path, member)
  rename_place(path, member, member_of(me, nonce, 'r'), token)
  hand_on(path, rank + 1, 'w')
end
return {'ok'}
