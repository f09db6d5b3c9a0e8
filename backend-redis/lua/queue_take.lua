-- uses: queue
-- Takes items, the same ones when it is asked again. ARGV: the queue's path, 1 if it waits where
-- there are none, what it wants (as in `wants`; '' for one item).
-- {items, token, place, deliveries, value, ...}; {none}; {wait, ms}: until when it need not look
-- again if it is not told to, -1 for ever; {again}: at once, there was too much else to do.
in_any_case()
local refused = enter()
if refused then
  return refused
end
local q, mine = queue.open(ARGV[5]), me .. ':' .. nonce
local waits, words = ARGV[6] == '1', ARGV[7] ~= '' and ARGV[7]

-- The items that this take has, if it has any.
local function taken()
  local claims = queue.claims_of(q, mine, queue.batch)
  if #claims == 0 then
    return nil
  end
  local items = {'items'}
  for _, claim in ipairs(claims) do
    local place = queue.place_in(string.sub(claim, #me + 2))
    local its_claim = redis.call('HGET', q.claims, place)
    if its_claim then
      items[#items + 1] = string.match(its_claim, ':(%d+)$')
      items[#items + 1] = place
      items[#items + 1] = redis.call('HGET', q.deliveries, place) or '1'
      items[#items + 1] = redis.call('HGET', q.values, place) or ''
    end
  end
  return #items > 1 and items
end

local items = taken()
if items then
  return items
end
local more = queue.refresh(q)
if redis.call('EXISTS', q.line) == 1 then
  queue.serve(q.path)
  items = taken()
  if items then
    return items
  end
end
if more then
  return {'again'}
end
local in_line = redis.call('EXISTS', q.line) == 1
if not in_line then
  local want = queue.wanted(words)
  local claimed, again, moved = queue.claim(q, me, nonce, want)
  if moved then
    queue.serve(want.letters.path)
  end
  if #claimed > 0 then
    return taken()
  elseif again then
    return {'again'}
  end
end
if not waits then
  return {'none'}
end
if not (in_line and redis.call('ZSCORE', q.line, mine)) then
  note(nonce, q.path)
  redis.call('ZADD', q.line, text(next_token()), mine)
  if words then
    redis.call('HSET', q.wants, mine, words)
  end
end
return {'wait', queue.time_for(q, mine)}
