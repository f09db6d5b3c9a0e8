-- Leaves the record that a resume uses up. From now on the session has what was named to be kept; the
-- rest waits to be dropped.
in_any_case()
local refused = detaching()
if refused then return refused end

local held = root .. 'held/' .. me
redis.call('HSET', my_session, 'detached', '1')
if redis.call('EXISTS', held) == 1 then
  redis.call('RENAME', held, root .. 'dropped/' .. me)
end
if redis.call('EXISTS', root .. 'kept/' .. me) == 1 then
  redis.call('RENAME', root .. 'kept/' .. me, held)
end
return {'ok'}
