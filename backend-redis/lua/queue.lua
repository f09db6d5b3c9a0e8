-- Queues. An item is known by its place: `<priority, 5 digits>:<number, 16 digits>`, the number a
-- token taken when it was accepted. So places sort as items are delivered, and an item keeps its own.
--
-- Under root .. path .. '/':
--   values      hash   place -> value: every item, until it is acknowledged
--   deliveries  hash   place -> how often it was delivered
--   ready       zset   places, all with score 0: what can be delivered
--   delayed     zset   places by when they can (ms)
--   claims      hash   place -> `<session>:<nonce>:<token>`: who has it
--   in_flight   zset   `<session>:<nonce>:<place>`, all with score 0: the same by session and take
--   consumers   zset   sessions with claims by when their lease may end (ms), or earlier
--   line        zset   `<session>:<nonce>` by arrival: who waits
--   wants       hash   the same -> `<most> <after> <path of the dead letters>`, if not one item
--   look        string when the timekeeper looks again (ms)
--   names       hash   place -> the item's id, escaped
--   ids/<id>    string the id is in use; expires if the item has left
-- The session's index has `<nonce>` for a wait, and `<nonce>:<place>` for a claim.
--
-- If somebody waits, nothing is ready: whoever makes an item ready gives it to the first of them in
-- the same step. No step happens when a delay or a lease is over, unless somebody makes one: that is
-- the last in line, the timekeeper. The last, because it is served last: so the duty changes hands
-- when somebody joins, in the answer to that, and hardly ever otherwise.
--
-- A Redis whose memory is full refuses what puts items in. The rest it lets pass: it makes room.

local queue = {
  id_memory = 600000, -- ms
  -- The most of anything in one step.
  most = 100,
  -- The most items in one delivery, and the bytes beyond which none is added.
  batch = 32,
  batch_bytes = 2097152,
}

-- Milliseconds by the server's clock.
function queue.now()
  return math.floor(now() / 1000)
end

function queue.open(path)
  local base = root .. path .. '/'
  return {
    path = path,
    base = base,
    values = base .. 'values',
    deliveries = base .. 'deliveries',
    ready = base .. 'ready',
    delayed = base .. 'delayed',
    claims = base .. 'claims',
    in_flight = base .. 'in_flight',
    consumers = base .. 'consumers',
    line = base .. 'line',
    wants = base .. 'wants',
    look = base .. 'look',
    names = base .. 'names',
  }
end

-- Session and nonce of a wait.
function queue.who(wait)
  return string.match(wait, '^(.*):(.*)$')
end

-- The place in what the index says of a claim, `<nonce>:<place>`.
function queue.place_in(field)
  return string.sub(field, 18)
end

-- Puts an item in, at the end of its priority. Nobody has it yet.
function queue.accept(q, priority, value)
  local place = string.format('%05d:%016.0f', priority, next_token())
  redis.call('HSET', q.values, place, value)
  redis.call('ZADD', q.ready, 0, place)
  return place
end

-- Removes what is left of an item that is not ready, delayed or claimed any more.
function queue.forget(q, place)
  local id = redis.call('HGET', q.names, place)
  if id then
    redis.call('SET', q.base .. 'ids/' .. id, '', 'PX', queue.id_memory)
    redis.call('HDEL', q.names, place)
  end
  redis.call('HDEL', q.values, place)
  redis.call('HDEL', q.deliveries, place)
end

-- Where there is neither a claim nor a wait, nobody's lease and nobody's time matters.
function queue.tidy(q)
  if redis.call('EXISTS', q.in_flight, q.line) == 0 then
    redis.call('DEL', q.consumers, q.look)
  end
end

function queue.timekeeper(q)
  return redis.call('ZRANGE', q.line, -1, -1)[1]
end

-- The timekeeper is to look again no later than at `due`.
function queue.remind(q, due)
  local keeper = queue.timekeeper(q)
  if keeper and due < tonumber(redis.call('GET', q.look) or math.huge) then
    redis.call('SET', q.look, text(due))
    tell(queue.who(keeper))
  end
end

-- The claims of a session, or of one take.
function queue.claims_of(q, prefix, most)
  -- `;` comes right after `:`.
  return redis.call('ZRANGEBYLEX', q.in_flight, '[' .. prefix .. ':', '(' .. prefix .. ';',
    'LIMIT', 0, most)
end

-- The places of the items to be delivered next, as many as are wanted, or fewer if they are large.
-- What was delivered too often goes to the dead letters instead. Also says whether to try again
-- because there was too much of that, and whether there was any.
function queue.choose(q, want)
  local chosen, bytes, moved = {}, 0, 0
  while #chosen < want.most do
    local places = redis.call('ZRANGE', q.ready, #chosen, want.most - 1)
    for _, place in ipairs(places) do
      local tries = want.after and tonumber(redis.call('HGET', q.deliveries, place) or 0)
      local value = tries and tries >= want.after and redis.call('HGET', q.values, place)
      -- One without a value is for its consumer to find.
      if value then
        queue.accept(want.letters, tonumber(string.sub(place, 1, 5)), value)
        redis.call('ZREM', q.ready, place)
        queue.forget(q, place)
        moved = moved + 1
        bytes = bytes + #value
      else
        if want.most > 1 then
          bytes = bytes + redis.call('HSTRLEN', q.values, place)
        end
        if #chosen > 0 and bytes > queue.batch_bytes then
          return chosen, false, moved > 0
        end
        chosen[#chosen + 1] = place
      end
      if moved >= queue.batch or (moved > 0 and bytes > queue.batch_bytes) then
        return chosen, true, true
      end
    end
    if not want.after or #places == 0 then
      break
    end
  end
  return chosen, false, moved > 0
end

-- Claims the next items for a take: {token, place, deliveries} of each. The rest as `choose` has it.
function queue.claim(q, session, its_nonce, want)
  local chosen, more, moved = queue.choose(q, want)
  local claimed = {}
  if #chosen == 0 then
    return claimed, more, moved
  end
  for number, place in ipairs(chosen) do
    local token, field = text(next_token()), its_nonce .. ':' .. place
    redis.call('HSET', q.claims, place, session .. ':' .. its_nonce .. ':' .. token)
    redis.call('ZADD', q.in_flight, 0, session .. ':' .. field)
    redis.call('HSET', root .. 'held/' .. session, field, q.path)
    claimed[number] = {token, place, redis.call('HINCRBY', q.deliveries, place, 1)}
  end
  redis.call('ZREM', q.ready, unpack(chosen))
  local due = queue.now() + left(session)
  if redis.call('ZADD', q.consumers, 'NX', text(due), session) == 1 then
    queue.remind(q, due)
  end
  return claimed, more, moved
end

-- Whether a session that waits can be given something: one that was detached does not wait any more.
function queue.is_there(session)
  local facts = redis.call('HMGET', root .. 'session/' .. session, 'connection', 'detached')
  return facts[1] and not facts[2]
end

-- Takes a wait out of the line. Who is the last from now on keeps the time.
function queue.stop_waiting(q, session, its_nonce)
  local wait = session .. ':' .. its_nonce
  local keeper = queue.timekeeper(q)
  unnote(session, its_nonce)
  if redis.call('ZREM', q.line, wait) == 0 then
    return
  end
  redis.call('HDEL', q.wants, wait)
  if keeper == wait then
    keeper = queue.timekeeper(q)
    if keeper then
      tell(queue.who(keeper))
    else
      queue.tidy(q)
    end
  end
end

-- What a take wants, from its words.
function queue.wanted(words)
  local most, after, letters = string.match(words or '1 0 ', '^(%d+) (%d+) (.*)$')
  local want = {most = tonumber(most)}
  if after ~= '0' then
    want.after, want.letters = tonumber(after), queue.open(letters)
  end
  return want
end

-- Gives what is ready to those who wait, in their order. What it does not get done in this step, the
-- first of them goes on with.
function queue.serve(path)
  local paths, work = {path}, queue.most
  while #paths > 0 do
    local q = queue.open(table.remove(paths))
    while true do
      local first = redis.call('ZRANGE', q.line, 0, 0)[1]
      if not first or redis.call('EXISTS', q.ready) == 0 then
        break
      end
      local session, its_nonce = queue.who(first)
      if work <= 0 then
        tell(session, its_nonce)
        break
      end
      work = work - 1
      if not queue.is_there(session) then
        queue.stop_waiting(q, session, its_nonce)
      else
        local want = queue.wanted(redis.call('HGET', q.wants, first))
        local claimed, more, moved = queue.claim(q, session, its_nonce, want)
        if moved then
          paths[#paths + 1] = want.letters.path
        end
        if #claimed > 0 then
          redis.call('ZREM', q.line, first)
          redis.call('HDEL', q.wants, first)
          unnote(session, its_nonce)
          tell(session, its_nonce)
        end
        work = work - (more and queue.batch or #claimed)
      end
    end
  end
end

-- Ends a claim.
function queue.end_claim(q, session, field)
  redis.call('HDEL', q.claims, queue.place_in(field))
  redis.call('ZREM', q.in_flight, session .. ':' .. field)
  unnote(session, field)
  queue.tidy(q)
end

-- Ends a claim, and puts its item back to its place, or off until `due`.
function queue.put_back(q, session, field, due)
  if due then
    redis.call('ZADD', q.delayed, text(due), queue.place_in(field))
  else
    redis.call('ZADD', q.ready, 0, queue.place_in(field))
  end
  queue.end_claim(q, session, field)
end

-- Whether a delivery is in force.
function queue.has(q, session, place, token)
  local claim = redis.call('HGET', q.claims, place)
  if not claim then
    return false
  end
  local its_session, its_token = string.match(claim, '^(.*):.*:(.*)$')
  return its_session == session and its_token == token
end

-- Makes ready what was delayed until now. Says whether there may be more.
function queue.advance(q)
  local due = redis.call('ZRANGEBYSCORE', q.delayed, '-inf', text(queue.now()), 'LIMIT', 0, queue.most)
  for _, place in ipairs(due) do
    redis.call('ZADD', q.ready, 0, place)
    redis.call('ZREM', q.delayed, place)
  end
  return #due == queue.most
end

-- Puts back what the dead have. Says whether there may be more.
function queue.bury(q)
  local at = text(queue.now())
  local due = redis.call('ZRANGEBYSCORE', q.consumers, '-inf', at, 'LIMIT', 0, queue.most)
  local work = queue.most
  for _, session in ipairs(due) do
    local lives = alive(session)
    local claims = queue.claims_of(q, session, lives and 1 or work)
    if #claims > 0 and lives then
      redis.call('ZADD', q.consumers, text(queue.now() + left(session)), session)
    else
      for _, claim in ipairs(claims) do
        queue.put_back(q, session, string.sub(claim, #session + 2))
      end
      if #claims == work then
        return true
      end
      redis.call('ZREM', q.consumers, session)
    end
    work = work - math.max(#claims, 1)
    if work <= 0 then
      return true
    end
  end
  return #due == queue.most
end

-- Puts back what an operator took from its consumer, by deleting the claim. Says whether there may
-- be more.
function queue.mend(q)
  local claims = redis.call('HLEN', q.claims)
  if claims >= redis.call('ZCARD', q.in_flight) then
    return false
  end
  -- How far the search has come.
  local mark = q.base .. 'mended'
  local after = redis.call('GET', mark)
  local page = redis.call('ZRANGEBYLEX', q.in_flight, after and '(' .. after or '-', '+', 'LIMIT', 0,
    queue.most)
  if #page < queue.most then
    redis.call('DEL', mark)
  else
    redis.call('SET', mark, page[#page], 'PX', 10000)
  end
  for _, claim in ipairs(page) do
    local session, field = string.match(claim, '^(.*):(.*:.*:.*)$')
    if redis.call('HEXISTS', q.claims, queue.place_in(field)) == 0 then
      queue.put_back(q, session, field)
    end
  end
  return true
end

-- Brings the queue up to this moment. If it says so, there is more of this to be done first.
function queue.refresh(q)
  local bury, mend, advance = queue.bury(q), queue.mend(q), queue.advance(q)
  return bury or mend or advance
end

-- For how long one who waits need not look, in ms: the timekeeper until something is due, the others
-- until the timekeeper's lease ends. Nobody for longer than its own lease: in the meantime another may
-- have become the timekeeper, and died.
function queue.time_for(q, wait)
  local session = queue.who(wait)
  for _ = 1, queue.most do
    local keeper = queue.timekeeper(q)
    if keeper == wait then
      break
    end
    local its_session, its_nonce = queue.who(keeper)
    if alive(its_session) then
      return left(its_session)
    end
    queue.stop_waiting(q, its_session, its_nonce)
  end
  local delay = redis.call('ZRANGE', q.delayed, 0, 0, 'WITHSCORES')[2]
  local lease = redis.call('ZRANGE', q.consumers, 0, 0, 'WITHSCORES')[2]
  local due = math.min(tonumber(delay or math.huge), tonumber(lease or math.huge),
    queue.now() + left(session))
  redis.call('SET', q.look, text(due))
  return math.max(due - queue.now(), 0) + 1
end

-- How many claims of sessions that end this step may still put back for others than the one asked for.
local queue_spare = queue.most

-- A session that ends gives its claims in a queue back together, and only then are they handed on: so
-- they come in their order.
freeing['queue'] = function(path, session, field)
  local q = queue.open(path)
  if #field == 16 then
    queue.stop_waiting(q, session, field)
    return
  elseif not redis.call('ZSCORE', q.in_flight, session .. ':' .. field) then
    unnote(session, field)
    return
  end
  queue.put_back(q, session, field)
  for _, claim in ipairs(queue.claims_of(q, session, queue_spare)) do
    queue.put_back(q, session, string.sub(claim, #session + 2))
    queue_spare = queue_spare - 1
  end
  if #queue.claims_of(q, session, 1) == 0 then
    queue.serve(path)
  else
    -- Whoever looks goes on with it, if the one who began does not.
    redis.call('ZADD', q.consumers, 0, session)
    queue.remind(q, 0)
  end
end

-- Whether a delivery, known by its item's place and its token, is in force.
holds['queue'] = function(path, place, token)
  local claim = redis.call('HGET', root .. string.match(path, '^queue/[^/]*') .. '/claims', place)
  if not claim then
    return false
  end
  local session, its_token = string.match(claim, '^(.*):.*:(.*)$')
  return its_token == text(token) and alive(session)
end
