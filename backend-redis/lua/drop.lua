-- uses: all
-- Removes a part of what a session had and did not keep when it was detached; `more` if there is more.
in_any_case()
local dropped, held = root .. 'dropped/' .. me, root .. 'held/' .. me
for field, path in pairs(some_of(dropped)) do
  if kind_of(path) == 'barrier' then
    redis.call('HSET', held, field, path) -- a hold stays without anybody there who knows of it
  elseif redis.call('HEXISTS', held, field) == 0 then
    freeing[kind_of(path)](path, me, field)
  end
  redis.call('HDEL', dropped, field)
end
return {redis.call('EXISTS', dropped) == 1 and 'more' or 'ok'}
