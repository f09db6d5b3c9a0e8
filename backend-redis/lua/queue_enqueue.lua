-- uses: queue
-- Puts items in, all of them, once for each nonce. ARGV: the queue's path, then for each item its
-- priority, its id (escaped; '' for none) and its value. {ok}.
local refused = enter()
if refused then
  return refused
end
if before then
  return {'ok'}
end
-- First, so that a Redis that has no memory left refuses before anything is done.
remember('ok')
local q = queue.open(ARGV[5])
for at = 6, #ARGV, 3 do
  local id = ARGV[at + 1]
  if id == '' then
    queue.accept(q, tonumber(ARGV[at]), ARGV[at + 2])
  elseif redis.call('SETNX', q.base .. 'ids/' .. id, '') == 1 then
    local place = queue.accept(q, tonumber(ARGV[at]), ARGV[at + 2])
    redis.call('HSET', q.names, place, id)
  end
end
queue.serve(q.path)
return {'ok'}
