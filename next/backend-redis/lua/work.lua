-- The steps of work queues. Costs in redis.calls; i items of the step, n items in the queue, k takes that are served:
--
--   enqueue   13 + 4 i, with an id 2 more each                                                   O((i + k) log n)
--   take      12 + 7 i; one that waits 13                                                        O((i + k) log n)
--   ack       4 + 5 i                                                                            O(i)
--   nack      4 + 6 i                                                                            O((i + k) log n)
--   leave     3 + 6 i                                                                            O((i + k) log n)
--   depth     6, peek 5                                                                          O(log n)
--   purge     4 + 6 for each of about 50 items of a script, with an id 2 more, with a claim 3 more     O(n) scripts

-- How many items one script of a purge removes: about 1 ms, 3 ms if all are with consumers that took 32 each.
local purged_at_once = 50

-- ARGV: 6 path, then for each item: priority, id or '', delay in microseconds, value. ok, more
local function enqueue()
  local refused = enter(true)
  if refused then return refused end
  if before then
    return {'ok', 0}
  end
  local q = work_queue(ARGV[6])
  -- Before anything is written: a key of a wrong type must not leave a part of the items, under a marker that says `ok`.
  for _, key in ipairs({q.ready, q.delayed, q.ids, deadlines}) do
    redis.call('ZCARD', key)
  end
  for _, key in ipairs({q.values, q.items}) do
    redis.call('HLEN', key)
  end
  -- The first write: a full memory refuses all of it.
  local number = next_token((#ARGV - 6) / 4)
  remember('ok')
  forget_ids(q)
  for i = 7, #ARGV, 4 do
    local id = ARGV[i + 1]
    if id == '' or not is_duplicate(q, id) then
      if id ~= '' then
        redis.call('ZADD', q.ids, 'inf', id)
      end
      accept(q, number, tonumber(ARGV[i]), ARGV[i + 3], tonumber(ARGV[i + 2]), '1', id)
    end
    number = number + 1
  end
  serve_all()
  return {'ok', again}
end

-- Adds to an answer, for each claim: token, priority, deliveries, id, value.
local function add_items(answer, q, claims)
  for token, place in string.gmatch(claims, '(%d+)@([^,]+)') do
    local deliveries, _, id = read_item(q, place)
    local value = redis.call('HGET', q.values, place)
    for _, part in ipairs({token, tonumber(string.sub(place, 1, 5)), deliveries, id, value or ''}) do
      answer[#answer + 1] = part
    end
  end
  return answer
end

-- Returns the microseconds until the first consumer has to look: something may be available then.
local function first_due(q)
  local first = redis.call('ZRANGE', q.delayed, 0, 0, 'WITHSCORES')[2]
  local rest = first and tonumber(first) - now() or math.huge
  -- No consumer's lease ends before the first of all leases.
  if redis.call('HLEN', q.claims) > 0 then
    local lease = redis.call('ZRANGE', deadlines, 0, 0, 'WITHSCORES')[2]
    rest = lease and math.min(rest, tonumber(lease) - now()) or rest
  end
  return rest
end

-- ARGV: 6 path, 7 `wait` or `try`, 8 what it wants: items, bytes, most deliveries or 0, path of dead letters.
-- items, more, then the items | waiting, ms until the next look, more | busy, 0, more | revoked | sweep
local function take()
  local refused = enter(true)
  if refused then return refused end
  local q, member = work_queue(ARGV[6]), me .. ':' .. nonce
  allow_full_memory()
  local entry = redis.call('HGET', held, nonce)
  if entry and string.sub(entry, 1, 1) == '!' then
    return {'revoked'}
  end
  local claims = read_take(entry)
  -- A place that was deleted by hand is taken again.
  if not claims or claims == '-' and not redis.call('ZSCORE', q.consumers, member) then
    claims = nil
    promote(q)
    if redis.call('ZCARD', q.consumers) == 0 then
      claims = claim(q, me, nonce, ARGV[8], math.huge)
    end
    if not claims then
      redis.call('ZADD', q.consumers, int(next_token()), member)
      redis.call('HSET', q.wants, member, ARGV[8])
      redis.call('HSET', held, nonce, 'q - ' .. q.path)
    end
  end
  to_serve[q.path] = (not claims or claims == '-') and q or nil
  serve_all()
  claims = read_take(redis.call('HGET', held, nonce))
  if claims ~= '-' then
    return add_items({'items', again}, q, claims)
  end
  local rank, rest = redis.call('ZRANK', q.consumers, member), left(me)
  if rank and rank > 0 then
    local ahead = redis.call('ZRANGE', q.consumers, rank - 1, rank - 1)[1]
    local its_rest = left((string.match(ahead, '^[^:]+')))
    -- A dead one that is not the first is removed by the sweep.
    again = its_rest <= 0 and 1 or again
    rest = math.min(rest, its_rest)
  else
    local due = first_due(q)
    if due <= 0 and again == 0 then
      return {'sweep'}
    end
    rest = math.min(rest, due)
  end
  if ARGV[7] == 'try' then
    leave_consumers(q, member)
    redis.call('HDEL', held, nonce)
    return {'busy', 0, again}
  end
  return {'waiting', math.max(0, math.ceil(rest / 1000)), again}
end

-- ARGV from 6 on, for each claim: nonce, path, token, and for `nack` the delay in microseconds.
-- ended, a 1 or 0 for each, more
local function end_claims(width, finish)
  allow_full_memory()
  local refused = enter(false)
  if refused then return refused end
  if before then
    return {'ended', before, 0}
  end
  local results = {}
  for i = 6, #ARGV, width do
    local q = work_queue(ARGV[i + 1])
    local place = drop_claim(held, q, ARGV[i], ARGV[i + 2])
    if place then
      finish(to_serve[q.path] or q, place, tonumber(ARGV[i + 3]))
    end
    results[#results + 1] = place and '1' or '0'
  end
  remember(table.concat(results))
  serve_all()
  return {'ended', table.concat(results), again}
end

local function ack()
  return end_claims(3, remove_item)
end

local function nack()
  return end_claims(4, make_available)
end

-- ARGV from 6 on, for each take: nonce, path. ok, more
local function leave()
  allow_full_memory()
  local refused = enter(false)
  if refused then return refused end
  for i = 6, #ARGV, 2 do
    local its_nonce, q = ARGV[i], work_queue(ARGV[i + 1])
    local claims, path = read_take(redis.call('HGET', held, its_nonce))
    if path == q.path then
      if claims == '-' then
        leave_consumers(q, me .. ':' .. its_nonce)
      else
        give_back(q, claims, true)
      end
    end
    redis.call('HDEL', held, its_nonce)
  end
  serve_all()
  return {'ok', again}
end

-- ARGV: 6 path. ok, ready, in flight, delayed
local function depth()
  local q = work_queue(ARGV[6])
  local due = redis.call('ZCOUNT', q.delayed, '-inf', int(now()))
  local ready = redis.call('ZCARD', q.ready)
  local in_flight = redis.call('HLEN', q.claims)
  local delayed = redis.call('ZCARD', q.delayed)
  return {'ok', ready + due, in_flight, delayed - due}
end

-- ARGV: 6 path. item, priority, deliveries, id, value | empty
local function peek()
  local q = work_queue(ARGV[6])
  local place = redis.call('ZRANGE', q.ready, 0, 0)[1]
  for _, other in ipairs(redis.call('ZRANGE', q.delayed, '-inf', int(now()), 'BYSCORE', 'LIMIT', 0, 100)) do
    place = (not place or other < place) and other or place
  end
  if not place then
    return {'empty'}
  end
  local deliveries, _, id = read_item(q, place)
  return {'item', tonumber(string.sub(place, 1, 5)), deliveries, id, redis.call('HGET', q.values, place)}
end

-- ARGV: 6 path. Removes the items that were there at its first script; the takes of those in flight end.
-- ok, number of items | more (the same request again)
--
-- Its slot knows how far it is: number of items, cursor, and a number above those of the items that it removes.
local function purge()
  allow_full_memory()
  local refused = enter(true)
  if refused then return refused end
  local count, cursor, limit = string.match(before or '0 0 ' .. int(next_token()), '^(%d+) (%d+) (%d+)$')
  if not count then
    return {'ok', before}
  end
  local q = work_queue(ARGV[6])
  -- An item stays in the hash wherever it goes meanwhile, so the scan meets all that were there.
  local page = redis.call('HSCAN', q.items, cursor, 'COUNT', purged_at_once)
  for i = 1, #page[2], 2 do
    local place = page[2][i]
    if tonumber(string.sub(place, 7)) < tonumber(limit) then
      local claim = redis.call('HGET', q.claims, place)
      if claim then
        local session, its_nonce, token = string.match(claim, '^([^:]+):([^:]+):(.*)$')
        drop_claim(root .. 'held/' .. session, q, its_nonce, token)
      end
      redis.call('ZREM', q.ready, place)
      redis.call('ZREM', q.delayed, place)
      remove_item(q, place)
      count = count + 1
    end
  end
  if page[1] ~= '0' then
    remember(int(count) .. ' ' .. page[1] .. ' ' .. limit)
    return {'more'}
  end
  -- The time of the next delayed item may be another one.
  redis.call('ZADD', deadlines, int(now()), 'q/' .. q.path)
  remember(int(count))
  return {'ok', int(count)}
end

local steps = {enqueue = enqueue, take = take, ack = ack, nack = nack, leave = leave, depth = depth, peek = peek, purge = purge}
return steps[operation]()
