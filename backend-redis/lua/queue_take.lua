-- uses: queue
-- Takes items, the same ones when it is asked again. ARGV: the queue's path, 1 if it waits where
-- there are none, what it wants (as in `wants`; '' for one item).
-- {items, token, place, deliveries, value, ...}; {none}; {wait, ms}: until when it need not look
-- again if it is not told to; {again}: at once, there was too much else to do; {damaged, place}: this
-- item's value is gone, and now the rest of it.
in_any_case()
local refused = enter()
if refused then
  return refused
end
local q, mine = queue.open(ARGV[5]), me .. ':' .. nonce
local waits, words = ARGV[6] == '1', ARGV[7] ~= '' and ARGV[7]

local function answer(claimed)
  local items = {'items'}
  for _, item in ipairs(claimed) do
    local token, place, deliveries = unpack(item)
    local value = redis.call('HGET', q.values, place)
    if not value then
      -- Else it would be in everybody's way. The others go back when this take is withdrawn.
      queue.end_claim(q, me, nonce .. ':' .. place)
      queue.forget(q, place)
      return {'damaged', place}
    end
    items[#items + 1] = token
    items[#items + 1] = place
    items[#items + 1] = deliveries
    items[#items + 1] = value
  end
  return items
end

-- What this take has already.
local function before_this()
  local claimed = {}
  for _, claim in ipairs(queue.claims_of(q, mine, queue.batch)) do
    local place = queue.place_in(string.sub(claim, #me + 2))
    local token = string.match(redis.call('HGET', q.claims, place) or '', ':(%d+)$')
    if token then
      claimed[#claimed + 1] = {token, place, redis.call('HGET', q.deliveries, place) or 1}
    end
  end
  return claimed
end

local claimed = before_this()
if #claimed > 0 then
  return answer(claimed)
end
if queue.refresh(q) then
  return {'again'}
end
local is_line = redis.call('EXISTS', q.line) == 1
if is_line then
  queue.serve(q.path)
  claimed = before_this()
  if #claimed > 0 then
    return answer(claimed)
  end
  is_line = redis.call('EXISTS', q.line) == 1
end
if not is_line then
  local want, again, moved = queue.wanted(words)
  claimed, again, moved = queue.claim(q, me, nonce, want)
  if moved then
    queue.serve(want.letters.path)
  end
  if #claimed > 0 then
    return answer(claimed)
  elseif again then
    return {'again'}
  end
end
if not waits then
  return {'none'}
end
if not (is_line and redis.call('ZSCORE', q.line, mine)) then
  note(nonce, q.path)
  redis.call('ZADD', q.line, text(next_token()), mine)
  if words then
    redis.call('HSET', q.wants, mine, words)
  end
end
return {'wait', queue.time_for(q, mine)}
