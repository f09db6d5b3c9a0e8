-- uses: queue
-- The item that would be delivered now. ARGV: the queue's path. {ok, place, deliveries, value};
-- {none}; {again}; {damaged, place}: its value is gone.
in_any_case()
local refused = enter()
if refused then
  return refused
end
local q = queue.open(ARGV[5])
if queue.refresh(q) then
  return {'again'}
end
queue.serve(q.path)
local place = redis.call('ZRANGE', q.ready, 0, 0)[1]
if not place then
  return {'none'}
end
local value = redis.call('HGET', q.values, place)
if not value then
  return {'damaged', place}
end
return {'ok', place, redis.call('HGET', q.deliveries, place) or '0', value}
