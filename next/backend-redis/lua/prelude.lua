-- The beginning of every script.
--
-- KEYS[1] is the root of the namespace. It is the only declared key and never exists, so a cluster node refuses the script
-- before it starts while the slot moves. With declared keys that exist, the script could start and miss those that have left.
--
-- ARGV: 1 operation, 2 session, 3 epoch, 4 slot or '', 5 nonce, then the operation's own.
--
-- Keys, after the root; none has a TTL, because a lease is a number that scripts compare:
--   token                   the last token, in microseconds since 1970 or above
--   deadlines               due work by microseconds: `s/<session>` to end, `d/<session>` to drop what a detachment did not
--                           keep, `w/<path>` to grant, `q/<path>` to serve
--   session/<id>            epoch, deadline, ttl, renewals, detached, resumed, next, label, and `d<slot>`: the last step of a
--                           slot. The channel of the same name carries what happens to the session's requests
--   held/<id>, kept/<id>    the session's entries by nonce: `<token or -> <mode> <path>`, of a take `q <path> ...`, of a
--                           leased key `k <key>`, or `! ...` once an operator has ended it. `kept` is of a detached session
--   <path>/holders          `<session>:<nonce>:<mode>` by token
--   <path>/waiters          the same by arrival
--   <path>/values           of an election: `<session>:<nonce>` to `<number> <version> <value>`
--   <path> of a key         of `data` and `barrier`: `<created> <modified> <version> <session or ->`, a newline, the value
--   revision                the revision of the last commit, and of the last removal of a key
--   topic/<path>            a channel, for the observers of an election or a double barrier

local root, operation, me, slot, nonce = KEYS[1], ARGV[1], ARGV[2], ARGV[4], ARGV[5]
local record, held, deadlines = root .. 'session/' .. me, root .. 'held/' .. me, root .. 'deadlines'

-- Formats an integer: `tostring` rounds beyond 14 digits.
local function int(number)
  return string.format('%.0f', number)
end

local instant
-- The server's clock in microseconds, read once.
local function now()
  if not instant then
    local time = redis.call('TIME')
    instant = time[1] * 1000000 + time[2]
  end
  return instant
end

-- Draws `count` tokens and returns the first. 2 calls, 3 if the clock is behind. Tokens follow the clock, so they rise even
-- after the server has lost its newest writes.
local function next_token(count)
  local first, more = now(), (count or 1) - 1
  local last = tonumber(redis.call('SET', root .. 'token', int(first + more), 'GET') or 0) or 0
  if last >= first then
    first = last + 1
    redis.call('SET', root .. 'token', int(first + more))
  end
  return first
end

-- Sends a message to the client of a session.
local function notify(session, message)
  redis.call('SPUBLISH', root .. 'session/' .. session, message)
end

-- Lets the script write although the memory is full: Redis checks only until the script's first write.
local function allow_full_memory()
  redis.call('HDEL', record, '')
end

-- The result of this step, if an earlier attempt was carried out.
local before
-- Remembers the result under operation and nonce: a nonce alone would answer a release with the result of a downgrade.
local function remember(result)
  if slot ~= '' then
    redis.call('HSET', record, 'd' .. slot, operation .. ' ' .. nonce .. ' ' .. result)
  end
end

-- Checks that the session may act over this connection. Returns the refusal, or nothing. 1 call, 3 at a new epoch.
-- An older epoch belongs to a connection that was replaced: its requests arrive too late.
local function enter(grants)
  local facts = redis.call('HMGET', record, 'epoch', 'deadline', 'detached', 'd' .. slot)
  if not facts[1] then
    return {'lost'}
  elseif tonumber(ARGV[3]) < tonumber(facts[1]) then
    return {'stale'}
  elseif facts[3] then
    return {'detached'}
  elseif tonumber(ARGV[3]) > tonumber(facts[1]) then
    allow_full_memory()
    redis.call('HSET', record, 'epoch', ARGV[3])
  end
  -- A session that is due acts no more, even if it was not swept yet.
  if grants and (tonumber(facts[2]) or 0) <= now() then
    return {'lost'}
  end
  if facts[4] then
    local step, number, result = string.match(facts[4], '^(%S+) (%d+) (.*)$')
    if step == operation and number == nonce then
      before = result
    elseif number and tonumber(number) > tonumber(nonce) then
      return {'late'}
    end
  end
end

local lefts = {}
-- Returns the microseconds until the lease of a session ends; 0 or less for one that has ended. The first script that sees
-- a lease end writes that down, so that a clock that is set back does not revive a session that was swept in part.
local function left(session)
  local known = lefts[session]
  if not known then
    local deadline = tonumber(redis.call('HGET', root .. 'session/' .. session, 'deadline') or 0) or 0
    known = deadline - now()
    if known <= 0 then
      -- What follows frees memory.
      allow_full_memory()
      if deadline > 0 then
        redis.call('HSET', root .. 'session/' .. session, 'deadline', '0')
      end
      redis.call('ZADD', deadlines, '0', 's/' .. session)
    end
    lefts[session] = known
  end
  return known
end

-- How many grants, claims and burials this script may still do, of all queues together.
local most = 100
-- Whether work is left for a sweep.
local again = 0

-- What the libraries contribute to the sweep. By the first character of an entry: `free[..](session, field, entry, touched)`
-- removes what the entry names, and sets `touched[<due work>]`. By the kind of due work: `settle[..](path, news)`.
local free, settle = {}, {}
