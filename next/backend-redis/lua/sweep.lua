-- Frees what has ended: at most 100 entries a script, and at most 100 grants and burials that follow. About 1 ms a script,
-- 2 ms if each entry has a waiter.
--
--   sweep    whatever is due                                                             ok | more
--   revoke   my session, then its entries: the client may die right after, so the same script frees the first of them
--                                                                                        ok | more (revoke again) | stale
--   detach   ARGV: 6 `1` in the last call, 7 a nonce above all of the session's, 8.. nonces that are kept
--            O(kept) + the first 100 entries that are not kept                          ok | more (sweep) | stale | lost
--
-- Costs: 4 redis.calls for each due session and 7 for each of its entries, each O(log n).

local touched, budget = {}, 100

-- Frees entries of one index within the budget. Returns whether none is left.
local function free_some(session, index)
  local flat = redis.call('HRANDFIELD', index, budget + 1, 'WITHVALUES')
  for i = 1, #flat, 2 do
    local free_entry = free[string.sub(flat[i + 1], 1, 1)]
    -- A key of a wrong type must not stop the sweep of all others.
    if free_entry then
      pcall(free_entry, session, flat[i], flat[i + 1], touched)
    end
    redis.call('HDEL', index, flat[i])
    budget = budget - 1
  end
  return redis.call('EXISTS', index) == 0
end

-- Frees entries of a session that has ended, and forgets it with the last one. Returns whether it did.
local function free_session(session)
  if free_some(session, root .. 'held/' .. session) and free_some(session, root .. 'kept/' .. session) then
    redis.call('DEL', root .. 'session/' .. session)
    redis.call('ZREM', deadlines, 's/' .. session, 'd/' .. session)
    return true
  end
end

local function end_session(session)
  redis.call('HSET', root .. 'session/' .. session, 'deadline', '0')
  redis.call('ZADD', deadlines, '0', 's/' .. session)
end

-- Frees what is due within the budget.
local function sweep()
  allow_full_memory()
  while budget > 0 do
    local due = redis.call('ZRANGE', deadlines, '-inf', int(now()), 'BYSCORE', 'LIMIT', 0, 1)[1]
    if not due then
      return 'ok'
    end
    local kind, what = string.sub(due, 1, 1), string.sub(due, 3)
    budget = budget - 1
    if kind == 's' then
      local deadline = tonumber(redis.call('HGET', root .. 'session/' .. what, 'deadline') or 0) or 0
      if deadline > now() then
        -- The two disagree, and the record counts: it is what the session's own steps read.
        redis.call('ZADD', deadlines, int(deadline), due)
      else
        if deadline > 0 then
          end_session(what)
        end
        free_session(what)
      end
    elseif kind == 'd' then
      if free_some(what, root .. 'held/' .. what) then
        redis.call('ZREM', deadlines, due)
      end
    else
      redis.call('ZREM', deadlines, due)
      touched[due] = touched[due] or {}
    end
  end
  return 'more'
end

local function revoke()
  local known = redis.call('HGET', record, 'epoch')
  if not known then
    return 'ok'
  elseif tonumber(known) > tonumber(ARGV[3]) then
    return 'stale'
  end
  allow_full_memory()
  redis.call('HSET', record, 'epoch', ARGV[3])
  end_session(me)
  return free_session(me) and 'ok' or 'more'
end

local function detach()
  local facts = redis.call('HMGET', record, 'epoch', 'detached', 'deadline')
  if not facts[1] or (tonumber(facts[3]) or 0) <= now() then
    return 'lost'
  elseif tonumber(facts[1]) > tonumber(ARGV[3]) then
    return 'stale'
  elseif facts[2] then -- by an earlier attempt
    return 'ok'
  end
  allow_full_memory()
  redis.call('HSET', record, 'epoch', ARGV[3])
  for i = 8, #ARGV do
    local entry = redis.call('HGET', held, ARGV[i])
    if entry then
      redis.call('HSET', root .. 'kept/' .. me, ARGV[i], entry)
      redis.call('HDEL', held, ARGV[i])
    end
  end
  if ARGV[6] ~= '1' then
    return 'ok'
  end
  redis.call('HSET', record, 'detached', '1', 'next', ARGV[7])
  if not free_some(me, held) then
    redis.call('ZADD', deadlines, '0', 'd/' .. me)
    return 'more'
  end
  return 'ok'
end

local steps = {sweep = sweep, revoke = revoke, detach = detach}
local answer = steps[operation]()
-- After all entries of this script, so that nothing is granted to a session that ends in it.
for due, news in pairs(touched) do
  local kind = settle[string.sub(due, 1, 1)]
  if kind then
    pcall(kind, string.sub(due, 3), news)
  end
end
announce()
if answer == 'ok' and again == 1 then
  answer = operation == 'sweep' and 'more' or 'ok'
end
return {answer, again}
