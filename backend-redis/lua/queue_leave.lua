-- uses: queue
-- Takes back what a take did: its place in line goes, its items go back as if they had never been
-- delivered. ARGV: the queue's path. {ok}.
in_any_case()
local refused = enter()
if refused then
  return refused
end
local q = queue.open(ARGV[5])
queue.stop_waiting(q, me, nonce)
local claims = queue.claims_of(q, me .. ':' .. nonce, queue.batch)
for _, claim in ipairs(claims) do
  local field = string.sub(claim, #me + 2)
  redis.call('HINCRBY', q.deliveries, queue.place_in(field), -1)
  queue.put_back(q, me, field)
end
if #claims > 0 then
  queue.serve(q.path)
end
return {'ok'}
