-- Before the session is detached: names some of what it keeps. The first of several steps says so.
-- Other than those of a session in use, these steps find their own work done if it is repeated.
in_any_case()
local refused = detaching()
if refused then return refused end

local kept, held = root .. 'kept/' .. me, root .. 'held/' .. me
if ARGV[5] == 'first' then
  redis.call('DEL', kept)
end
for i = 6, #ARGV do
  local path = redis.call('HGET', held, ARGV[i])
  if path then
    redis.call('HSET', kept, ARGV[i], path)
  end
end
return {'ok'}
