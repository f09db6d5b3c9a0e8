-- Work queues. A library of `work`, `sweep` and `admin`.
--
-- An item is known by its place, `<priority, 5 digits>:<number of its acceptance>`, and keeps it when it comes back. Below
-- <path>, which is `queue/<name>`:
--
--   values, items       hashes by place: the value; `<deliveries> <1 if the id counts> <id>`
--   ready               a sorted set of places, all with score 0: their order is that of delivery
--   delayed             places by the microsecond from which they can be delivered
--   claims              a hash of places: `<session>:<nonce>:<token>`
--   consumers, wants    takes that wait, `<session>:<nonce>` by arrival; `<items> <bytes> <most deliveries or 0> <dead-letter path>`
--   ids                 ids of items by the microsecond until which they are remembered; `inf` while the item is there
--
-- The entry of a take in its session's index: `q <claims or -> <path>`, the claims as `<token>@<place>,...`.
--
-- No step depends on the depth of the queue but by its logarithm. Costs in redis.calls: accept 4, with an id 6; claim 6, with
-- 6 for a consumer that waited; give_back 3; remove_item 3, with an id 5; drop_claim 3.

-- How long the id of a removed item is remembered, in microseconds, and how many are forgotten by one script at most.
local id_window, forgotten_at_once = 600 * 1000000, 64

local function work_queue(path)
  local base = root .. path .. '/'
  return {
    path = path, values = base .. 'values', items = base .. 'items', ready = base .. 'ready', delayed = base .. 'delayed',
    claims = base .. 'claims', consumers = base .. 'consumers', wants = base .. 'wants', ids = base .. 'ids',
  }
end

-- Returns the claims, as text or '-', and the path of a take; nothing for another entry.
local function read_take(entry)
  return string.match(entry or '', '^q (%S+) (.*)$')
end

-- Returns the deliveries of an item, `1` if its id counts, and the id or ''.
local function read_item(q, place)
  local deliveries, counts, id = string.match(redis.call('HGET', q.items, place) or '', '^(%d+) (%d) (.*)$')
  return tonumber(deliveries or 0), counts, id or ''
end

local function set_item(q, place, deliveries, counts, id)
  redis.call('HSET', q.items, place, int(deliveries) .. ' ' .. counts .. ' ' .. id)
end

local function forget_ids(q)
  local old = redis.call('ZRANGE', q.ids, '-inf', int(now()), 'BYSCORE', 'LIMIT', 0, forgotten_at_once)
  if #old > 0 then
    redis.call('ZREM', q.ids, unpack(old))
  end
end

-- Returns whether an item with this id is there, or was a while ago. Its id may be due to be forgotten.
local function is_duplicate(q, id)
  local kept = redis.call('ZSCORE', q.ids, id)
  return kept and (kept == 'inf' or tonumber(kept) > now())
end

-- Asks a take that waits, if there is one, to look.
local function wake(member)
  if member then
    local session, its_nonce = string.match(member, '^([^:]+):(.*)$')
    notify(session, its_nonce)
  end
end

-- Queues whose consumers this script has to serve.
local to_serve = {}

-- Makes an item available, after a delay in microseconds.
local function make_available(q, place, delay)
  to_serve[q.path] = q
  if delay <= 0 then
    redis.call('ZADD', q.ready, 0, place)
    return
  end
  redis.call('ZADD', q.delayed, int(now() + delay), place)
  -- The first consumer keeps the time, and may sleep for too long now.
  q.is_delayed = true
end

local function accept(q, number, priority, value, delay, counts, id)
  local place = string.format('%05d:%s', priority, int(number))
  redis.call('HSET', q.values, place, value)
  set_item(q, place, 0, counts, id)
  make_available(q, place, delay)
end

local function remove_item(q, place)
  local _, counts, id = read_item(q, place)
  redis.call('HDEL', q.values, place)
  redis.call('HDEL', q.items, place)
  if id ~= '' and counts == '1' then
    local due = int(now() + id_window)
    redis.call('ZADD', q.ids, due, id)
    -- The sweep forgets the ids of a queue that is not used any more.
    redis.call('ZADD', deadlines, 'LT', due, 'q/' .. q.path)
  end
end

-- Takes a claim out of its take, whose entry is in `index`. Returns the place and the number of the take's other claims, or
-- nothing if there is no such claim.
local function drop_claim(index, q, its_nonce, token)
  local claims, path = read_take(redis.call('HGET', index, its_nonce))
  if path ~= q.path then
    return
  end
  local rest, found = {}, nil
  for its_token, place in string.gmatch(claims, '(%d+)@([^,]+)') do
    if its_token == token then
      found = place
    else
      rest[#rest + 1] = its_token .. '@' .. place
    end
  end
  if not found then
    return
  elseif #rest == 0 then
    redis.call('HDEL', index, its_nonce)
  else
    redis.call('HSET', index, its_nonce, 'q ' .. table.concat(rest, ',') .. ' ' .. path)
  end
  redis.call('HDEL', q.claims, found)
  return found, #rest
end

-- Makes the items of a take available again; with `unseen`, those deliveries do not count.
local function give_back(q, claims, unseen)
  for place in string.gmatch(claims, '@([^,]+)') do
    redis.call('HDEL', q.claims, place)
    if unseen then
      local deliveries, counts, id = read_item(q, place)
      set_item(q, place, math.max(deliveries - 1, 0), counts, id)
    end
    make_available(q, place, 0)
  end
end

-- Removes a consumer that waits, and wakes the one behind it, whose time ended with its lease.
local function leave_consumers(q, member)
  local rank = redis.call('ZRANK', q.consumers, member)
  if rank then
    redis.call('ZREM', q.consumers, member)
    redis.call('HDEL', q.wants, member)
    wake(redis.call('ZRANGE', q.consumers, rank, rank)[1])
  end
end

local function promote(q)
  local due = redis.call('ZRANGE', q.delayed, '-inf', int(now()), 'BYSCORE', 'LIMIT', 0, 100)
  for _, place in ipairs(due) do
    redis.call('ZREM', q.delayed, place)
    redis.call('ZADD', q.ready, 0, place)
  end
  return #due == 100
end

local function move_to_dead_letters(q, place, path)
  local dead = work_queue(path)
  local _, _, id = read_item(q, place)
  redis.call('ZREM', q.ready, place)
  accept(dead, next_token(), tonumber(string.sub(place, 1, 5)), redis.call('HGET', q.values, place), 0, '0', id)
  remove_item(q, place)
end

-- Claims what is ready for a take: at most `share` items, and at least one. Returns the claims, or nothing.
local function claim(q, session, its_nonce, want, share)
  local items, bytes, after, dead_path = string.match(want, '^(%d+) (%d+) (%d+) (.*)$')
  items, bytes, after = math.min(tonumber(items), share), tonumber(bytes), tonumber(after)
  local claims = {}
  while #claims < items and most > 0 do
    local place = redis.call('ZRANGE', q.ready, 0, 0)[1]
    if not place then
      break
    end
    most = most - 1
    local deliveries, counts, id = read_item(q, place)
    if after > 0 and deliveries >= after then
      move_to_dead_letters(q, place, dead_path)
    else
      bytes = bytes - redis.call('HSTRLEN', q.values, place)
      if bytes < 0 and #claims > 0 then
        break
      end
      local token = int(next_token())
      redis.call('ZREM', q.ready, place)
      redis.call('HSET', q.claims, place, session .. ':' .. its_nonce .. ':' .. token)
      set_item(q, place, deliveries + 1, counts, id)
      claims[#claims + 1] = token .. '@' .. place
    end
  end
  if #claims > 0 then
    local text = table.concat(claims, ',')
    redis.call('HSET', root .. 'held/' .. session, its_nonce, 'q ' .. text .. ' ' .. q.path)
    return text
  end
end

-- Gives what is available to the consumers that wait, in the order of their arrival.
local function serve(q)
  local is_more = promote(q)
  while true do
    local member = redis.call('ZRANGE', q.consumers, 0, 0)[1]
    if not member then
      break
    end
    local session, its_nonce = string.match(member, '^([^:]+):(.*)$')
    if left(session) <= 0 then
      leave_consumers(q, member)
      redis.call('HDEL', root .. 'held/' .. session, its_nonce)
      most = most - 1
    else
      local ready = redis.call('ZCARD', q.ready)
      if ready == 0 or most <= 0 then
        is_more = is_more or ready > 0
        break
      end
      local share = math.max(1, math.floor(ready / redis.call('ZCARD', q.consumers)))
      local want = redis.call('HGET', q.wants, member)
      -- A take whose want was deleted by hand looks, and takes its place again.
      if not want or claim(q, session, its_nonce, want, share) then
        leave_consumers(q, member)
        notify(session, its_nonce)
      end
    end
    if most <= 0 then
      is_more = true
      break
    end
  end
  local first = redis.call('ZRANGE', q.delayed, 0, 0, 'WITHSCORES')
  if is_more then
    redis.call('ZADD', deadlines, int(now()), 'q/' .. q.path)
    again = 1
  elseif first[1] then
    redis.call('ZADD', deadlines, 'LT', first[2], 'q/' .. q.path)
  end
  if q.is_delayed then
    wake(redis.call('ZRANGE', q.consumers, 0, 0)[1])
  end
end

-- Serves the queues that this script has changed. Dead letters may add others.
local function serve_all()
  local path, q = next(to_serve)
  while path do
    to_serve[path] = nil
    serve(q)
    path, q = next(to_serve)
  end
end

free.q = function(session, its_nonce, entry, touched)
  local claims, path = read_take(entry)
  local q = work_queue(path)
  touched['q/' .. path] = touched['q/' .. path] or {}
  if claims == '-' then
    leave_consumers(q, session .. ':' .. its_nonce)
  else
    give_back(q, claims)
    to_serve[path] = nil
  end
end

settle.q = function(path)
  local q = work_queue(path)
  forget_ids(q)
  to_serve[path] = q
  serve_all()
  local first = redis.call('ZRANGE', q.ids, '-inf', '(inf', 'BYSCORE', 'LIMIT', 0, 1, 'WITHSCORES')[2]
  if first then
    redis.call('ZADD', deadlines, 'LT', first, 'q/' .. path)
    again = tonumber(first) <= now() and 1 or again
  end
end
