-- uses: queue
-- Gives a delivered item back to its place. ARGV: the queue's path, the item's place, the nonce of
-- the take, the token, for how long it is not to be delivered (ms). {ok}, once for each nonce; {gone}
-- if it is not this delivery's any more.
in_any_case()
local refused = enter()
if refused then
  return refused
end
if before then
  return {before}
end
local q, place = queue.open(ARGV[5]), ARGV[6]
if not queue.has(q, me, place, ARGV[8]) then
  return {'gone'}
end
remember('ok')
local delay = tonumber(ARGV[9])
if delay == 0 then
  queue.put_back(q, me, ARGV[7] .. ':' .. place)
  queue.serve(q.path)
else
  -- This millisecond has begun already.
  local due = queue.now() + delay + 1
  queue.put_back(q, me, ARGV[7] .. ':' .. place, due)
  queue.remind(q, due)
end
return {'ok'}
