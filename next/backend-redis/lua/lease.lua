-- Connections and leases. Costs in redis.calls:
--
--   connect   4 to 6   O(1)        first script of each connection. ARGV: 6 layout version. ok, epoch | layout, other version
--   open      4        O(log s)    ARGV: 6 ttl in ms, 7 label. ok | taken                 s sessions of the namespace
--   renew     6        O(log s)    ARGV: 6 ttl in ms, 7 renewals known to the client. ok, renewals, whether work is due
--   resume    5 to 9   O(1)        ARGV: 6 identity of this resumption. ok, epoch, ttl, next nonce | conflict | lost | sweep
--   entries   3 + e    O(e)        ARGV: 6 cursor; e <= about 250 entries. ok, next cursor, then nonce, state, entry of each

local function connect()
  -- A connection that is replaced while the memory is full must not end the leases that it keeps.
  allow_full_memory()
  local key = string.match(root, '^(.*/)[^/]+/$') .. 'layout'
  local known = redis.call('GET', key)
  if known and known ~= ARGV[6] then
    return {'layout', known}
  elseif not known then
    redis.call('SET', key, ARGV[6])
  end
  -- Above the epoch of every earlier connection of any client.
  return {'ok', int(next_token())}
end

local function open()
  if redis.call('EXISTS', record, held) > 0 then
    return {'taken'}
  end
  local deadline = int(now() + ARGV[6] * 1000)
  redis.call('HSET', record, 'epoch', ARGV[3], 'deadline', deadline, 'ttl', ARGV[6], 'renewals', '0', 'label', ARGV[7])
  redis.call('ZADD', deadlines, deadline, 's/' .. me)
  return {'ok'}
end

local function renew()
  local facts = redis.call('HMGET', record, 'epoch', 'deadline', 'detached', 'renewals')
  if not facts[1] or (tonumber(facts[2]) or 0) <= now() then
    return {'lost'}
  elseif tonumber(ARGV[3]) < tonumber(facts[1]) then
    return {'stale'}
  elseif facts[3] then
    return {'detached'}
  end
  allow_full_memory()
  local deadline = int(now() + ARGV[6] * 1000)
  local renewals = int(math.max(tonumber(ARGV[7]), tonumber(facts[4]) or 0) + 1)
  redis.call('HSET', record, 'deadline', deadline, 'epoch', ARGV[3], 'renewals', renewals)
  redis.call('ZADD', deadlines, deadline, 's/' .. me)
  local due = redis.call('ZCOUNT', deadlines, '-inf', int(now()))
  -- Fewer than the client knows: the server has lost writes over this very connection.
  return {'ok', facts[4] or '0', due > 0 and 1 or 0}
end

local function resume()
  local facts = redis.call('HMGET', record, 'epoch', 'deadline', 'detached', 'resumed', 'ttl', 'next')
  if not facts[1] or (tonumber(facts[2]) or 0) <= now() then
    return {'lost'}
  end
  local known = facts[1]
  allow_full_memory()
  if facts[3] then
    if redis.call('EXISTS', held) == 1 then
      return {'sweep'} -- what was not kept goes first
    end
    -- Otherwise a late sweep would drop what is kept.
    redis.call('ZREM', deadlines, 'd/' .. me)
    if redis.call('EXISTS', root .. 'kept/' .. me) == 1 then
      redis.call('RENAME', root .. 'kept/' .. me, held)
    end
    -- Above the connection of the process that detached it, which may be younger than this one.
    known = int(math.max(tonumber(ARGV[3]), tonumber(known) + 1))
    redis.call('HSET', record, 'epoch', known, 'resumed', ARGV[6])
    redis.call('HDEL', record, 'detached')
  elseif facts[4] ~= ARGV[6] then
    return {'conflict'}
  end
  return {'ok', known, facts[5], facts[6] or '1'}
end

-- `state` is 1 if the holding or place is there, 0 if not: its queue looks again then.
local function entries()
  local refused = enter(false)
  if refused then return refused end
  local page = redis.call('HSCAN', held, ARGV[6], 'COUNT', 250)
  local answer = {'ok', page[1]}
  for i = 1, #page[2], 2 do
    local its_nonce, entry = page[2][i], page[2][i + 1]
    local token, mode, path = string.match(entry, '^([%d-]+) (%S+) (.*)$')
    local there = 1
    if token then
      local set = root .. path .. (token == '-' and '/waiters' or '/holders')
      local score = tonumber(redis.pcall('ZSCORE', set, me .. ':' .. its_nonce .. ':' .. mode) or '')
      if not score or token ~= '-' and score ~= tonumber(token) then
        there = 0
        redis.pcall('ZADD', deadlines, int(now()), 'w/' .. path)
      end
    end
    answer[#answer + 1] = its_nonce
    answer[#answer + 1] = there
    answer[#answer + 1] = entry
  end
  return answer
end

local steps = {connect = connect, open = open, renew = renew, resume = resume, entries = entries}
return steps[operation]()
