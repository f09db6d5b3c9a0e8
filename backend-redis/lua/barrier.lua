-- Barriers: what stands at them, how it ends, and what that wakes.
--
-- A barrier is a hash: session, nonce, bound (1: it ends with its session), token.
--
-- A double barrier is a sorted set of `<session>:<nonce>` by token, those who wait or are inside,
-- and a hash `.../room`: count, first (the token of the first one to come), and closed (1) once
-- all are there. It closes in the step in which the last one comes, and is gone in the step in
-- which the last one leaves. So two generations never meet. The dead are buried where they would
-- count.

-- Above so many in a room, not everybody's lease is looked at by everybody who leaves.
local room_in_one_look = 100
local slow_look = 1000

-- Ends the hold, and everybody goes on.
local function end_hold(path, hold)
  redis.call('DEL', root .. path)
  if hold.bound then
    unnote(hold.session, hold.nonce)
  end
  tell_all(path)
end

-- The hold that stands, or nil. That of a dead session is ended.
local function find_hold(path)
  local found = redis.call('HMGET', root .. path, 'session', 'nonce', 'bound', 'token')
  if not found[4] then
    return nil
  end
  local hold = {session = found[1], nonce = found[2], bound = found[3] == '1',
    token = tonumber(found[4])}
  if hold.bound and not alive(hold.session) then
    end_hold(path, hold)
    return nil
  end
  return hold
end

freeing['barrier'] = function(path, session, field)
  local hold = find_hold(path)
  if hold and hold.bound and hold.session == session and hold.nonce == field then
    end_hold(path, hold)
  end
  unnote(session, field)
end

-- The count, first and closed of the room; nil when nobody is there.
local function find_room(path)
  if redis.call('EXISTS', root .. path) == 0 then
    -- Taken out by hand, all of them. (No deletion of nothing: what a script does after one, Redis
    -- does although its memory is full.)
    if redis.call('EXISTS', root .. path .. '/room') == 1 then
      redis.call('DEL', root .. path .. '/room')
    end
    return nil
  end
  local found = redis.call('HMGET', root .. path .. '/room', 'count', 'first', 'closed')
  return {count = tonumber(found[1]), first = tonumber(found[2]), closed = found[3] == '1'}
end

local function session_of(member)
  return string.match(member, '^(.*):')
end

local function take_participant(path, member)
  local session, its_nonce = string.match(member, '^(.*):(%x+)$')
  redis.call('ZREM', root .. path, member)
  unnote(session, its_nonce)
end

-- Somebody went: if the others are dead, so are all, and who waits for that goes on.
-- Says how long the first one who lives keeps its lease, or nil.
local function first_alive(path)
  while true do
    local members = redis.call('ZRANGE', root .. path, 0, room_in_one_look - 1)
    for _, member in ipairs(members) do
      local session = session_of(member)
      if alive(session) then
        return left(session)
      end
      take_participant(path, member)
    end
    if #members == 0 then
      redis.call('DEL', root .. path .. '/room')
      tell_all(path)
      return nil
    end
  end
end

-- Buries all the dead in a room, and says how many are left, and when the next lease ends.
local function bury_in_room(path)
  local there, ends = 0, nil
  for _, member in ipairs(redis.call('ZRANGE', root .. path, 0, -1)) do
    local session = session_of(member)
    if alive(session) then
      there = there + 1
      ends = math.min(ends or math.huge, left(session))
    else
      take_participant(path, member)
    end
  end
  return there, ends
end

freeing['double_barrier'] = function(path, session, field)
  local member = session .. ':' .. field
  local was_there = redis.call('ZSCORE', root .. path, member)
  take_participant(path, member)
  if was_there then
    first_alive(path)
  end
end

-- Whether the participant is inside.
holds['double_barrier'] = function(path, member, token)
  local score = redis.call('ZSCORE', root .. path, member)
  return score and tonumber(score) == token and alive(session_of(member))
    and redis.call('HGET', root .. path .. '/room', 'closed') == '1'
end
