-- uses: queue
-- How many items there are. ARGV: the queue's path. {ok, ready, in flight, delayed}; {again}.
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
local ready = redis.call('ZCARD', q.ready)
local in_flight = redis.call('ZCARD', q.in_flight)
return {'ok', ready, in_flight, redis.call('ZCARD', q.delayed)}
