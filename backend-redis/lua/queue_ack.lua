-- uses: queue
-- Removes a delivered item for good. ARGV: the queue's path, the item's place, the nonce of the take,
-- the token. {ok}, once for each nonce; {gone} if it is not this delivery's any more.
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
queue.end_claim(q, me, ARGV[7] .. ':' .. place)
queue.forget(q, place)
return {'ok'}
