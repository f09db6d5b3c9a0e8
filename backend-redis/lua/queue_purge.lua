-- uses: queue
-- Removes items that are with no consumer, some in each step. ARGV: the queue's path, the place after
-- which this step begins ('' at first), the last number that is meant ('' at first).
-- {ok, removed}; {again, removed, place, number}.
in_any_case()
local refused = enter()
if refused then
  return refused
end
local q, after, last = queue.open(ARGV[5]), ARGV[6], ARGV[7]
if last == '' then
  -- What is put in from now on is not meant.
  last = text(next_token())
end
if queue.refresh(q) then
  return {'again', 0, after, last}
end
local removed = 0
local function remove(key, place)
  queue.forget(q, place)
  redis.call('ZREM', key, place)
  removed = removed + 1
end
local delayed = redis.call('ZRANGE', q.delayed, 0, queue.most - 1)
for _, place in ipairs(delayed) do
  remove(q.delayed, place)
end
if #delayed > 0 then
  return {'again', removed, after, last}
end
local page = redis.call('ZRANGEBYLEX', q.ready, after == '' and '-' or '(' .. after, '+', 'LIMIT', 0,
  queue.most)
for _, place in ipairs(page) do
  if tonumber(string.sub(place, 7)) <= tonumber(last) then
    remove(q.ready, place)
  end
end
if #page < queue.most then
  queue.serve(q.path) -- what came in behind, and back from the dead
  return {'ok', removed}
end
return {'again', removed, page[#page], last}
