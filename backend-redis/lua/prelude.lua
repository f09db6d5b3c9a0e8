-- What every step begins with. A step is one script: it runs alone, at one instant of the server.
--
-- KEYS[1]  the root of the namespace; every other key begins with it, so all are in one slot
-- ARGV[1]  the session          ARGV[2]  the number of the connection that carries the step
-- ARGV[3]  a slot, or nothing   ARGV[4]  the nonce of the ask, in 16 hexadecimal digits
-- ARGV[5...]  the step's own arguments
--
-- A reply is an array that begins with a status.

local root, me, nonce = KEYS[1], ARGV[1], ARGV[4]
local my_session = root .. 'session/' .. me

-- Lua writes large numbers as 1.79e+15: whatever becomes part of a key or a value goes through this.
local function text(number)
  return string.format('%.0f', number)
end

-- Microseconds by the server's clock.
local instant
local function now()
  if not instant then
    local time = redis.call('TIME')
    instant = time[1] * 1000000 + time[2]
  end
  return instant
end

-- Tokens rise for ever, also when Redis has forgotten some: they stay at or above the server's clock
-- in microseconds as it was when a connection was first used. A Redis that forgets (a restart without
-- its log, a failover to a replica that lagged) breaks all connections, and the first step over a new
-- one lifts them over everything that was given before. Counting up does not overtake the clock:
-- nobody takes a million places a second.
local function lift_tokens()
  local last = tonumber(redis.call('GET', root .. 'last') or 0)
  redis.call('SET', root .. 'last', text(math.max(last, now())))
end
local function next_token()
  local token = redis.call('INCR', root .. 'last')
  if token <= 1e15 then
    lift_tokens() -- somebody has deleted the key
    token = redis.call('INCR', root .. 'last')
  end
  return token
end

-- Whether a session's lease is running.
local living = {}
local function alive(session)
  if living[session] == nil then
    living[session] = redis.call('EXISTS', root .. 'session/' .. session) == 1
  end
  return living[session]
end

-- How many milliseconds a session has left; one at least, so that whoever waits for its end finds
-- it ended.
local function left(session)
  return math.max(redis.call('PTTL', root .. 'session/' .. session), 0) + 1
end

-- Tells the session to look after the ask `about`, or that the ask holds now, under `token`.
local function tell(session, about, token)
  local message = about
  if token then
    message = message .. ' ' .. text(token)
  end
  redis.call('PUBLISH', root .. 'wake/' .. session, message)
end

-- Tells whoever watches the object at `path` that something has changed.
local function tell_all(path)
  redis.call('PUBLISH', root .. 'topic/' .. path, '')
end

-- The session's index: what it has, by nonce.
local function note(field, path)
  redis.call('HSET', root .. 'held/' .. me, field, path)
end
local function unnote(session, field)
  redis.call('HDEL', root .. 'held/' .. session, field)
end

-- The kind of the object at `path`.
local function kind_of(path)
  return string.match(path, '^([^/]+)/')
end

-- For each kind of object:
-- `freeing[kind](path, session, field)` removes what an entry of the index stands for, and hands on;
-- `holds[kind](path, member, token)` says whether a grant is in force.
local freeing, holds = {}, {}

-- A step that must not be done twice remembers its result in the session, in a slot that nobody
-- else uses until the answer has arrived. `before` is that result when the step is repeated.
local before
local function remember(result)
  if ARGV[3] ~= '' then
    redis.call('HSET', my_session, 'd' .. ARGV[3], nonce .. ' ' .. result)
  end
end

-- Once a step has written, Redis lets it go on although its memory is full. What frees memory, or
-- lets go of something, begins with a write that needs none.
local function in_any_case()
  redis.call('HDEL', my_session, '')
end

-- Whether the session lives, and the step is no late one of an older connection: that would come
-- after steps that were sent later. Returns the reply of a step that must not go on.
local function enter()
  local facts = redis.call('HMGET', my_session, 'connection', 'detached', 'd' .. ARGV[3])
  if not facts[1] or facts[2] then
    return {'lost'}
  end
  local known, mine = tonumber(facts[1]), tonumber(ARGV[2])
  if mine < known then
    return {'stale'}
  elseif mine > known then
    in_any_case() -- whoever waits goes on waiting
    redis.call('HSET', my_session, 'connection', ARGV[2])
    lift_tokens()
  end
  living[me] = true
  if facts[3] and string.sub(facts[3], 1, 16) == nonce then
    before = string.sub(facts[3], 18)
  end
end

-- What a step begins with that works towards detaching the session: it may have been detached by an
-- earlier one whose answer was lost.
local function detaching()
  local facts = redis.call('HMGET', my_session, 'connection', 'detached')
  if not facts[1] then
    return {'lost'}
  elseif tonumber(ARGV[2]) < tonumber(facts[1]) then
    return {'stale'}
  elseif facts[2] then
    return {'ok'}
  end
  -- Nothing that was sent before over another connection gets in between.
  redis.call('HSET', my_session, 'connection', ARGV[2])
end

-- A session whose time is over, or an empty text: what it left is to be buried.
local function overdue()
  local last = text(now() - 1000)
  return redis.call('ZRANGEBYSCORE', root .. 'sessions', '-inf', last, 'LIMIT', 0, 1)[1] or ''
end

-- Up to a hundred entries of a hash. Not by a scan: from its start, that would cross more and more
-- places that it has emptied.
local function some_of(index)
  local flat, entries = redis.call('HRANDFIELD', index, 100, 'WITHVALUES'), {}
  for i = 1, #flat, 2 do
    entries[flat[i]] = flat[i + 1]
  end
  return entries
end

-- Removes up to a hundred of the things that a session left which has ended.
local function end_of(session)
  for _, list in ipairs({'held/', 'dropped/'}) do
    local index = root .. list .. session
    for field, path in pairs(some_of(index)) do
      freeing[kind_of(path)](path, session, field)
      redis.call('HDEL', index, field)
    end
    if redis.call('EXISTS', index) == 1 then
      return 'more'
    end
  end
  redis.call('UNLINK', root .. 'kept/' .. session)
  redis.call('ZREM', root .. 'sessions', session)
  return 'ok'
end
