-- uses: line, election
-- Changes what the leader says, if my place leads under `token` and nothing with a greater number
-- was said before.
local path, token, number, value = ARGV[5], tonumber(ARGV[6]), tonumber(ARGV[7]), ARGV[8]
local refused = enter()
if refused then return refused end

local member, mine, side = my_place(path, nonce)
if mine ~= token or not standing(path, member, side, token) then
  return {'gone'}
end
local values = root .. path .. '/values'
local last = tonumber(redis.call('HGET', values, 'n' .. member) or 0)
if number > last then
  redis.call('HSET', values, 'v' .. member, value, 'n' .. member, text(number))
  new_order(path, member)
  tell_all(path)
end
return {'ok'}
