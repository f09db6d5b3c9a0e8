-- Wait queues: locks, read-write locks, elections, double barriers. A library of `wait`, `sweep` and `admin`.
--
-- A queue has two sorted sets, `holders` by token and `waiters` by arrival. Modes: x alone, s shared, g<n> one of a group
-- of n that is granted as a whole; inside, a group's mode is g<n>.<its first token>.
--
-- Each waiter sleeps until its predecessor's lease ends, the first one until that of the last holder. Who leaves wakes the
-- waiter whose predecessor it was. A hand-off changes no predecessor, so it costs one script and one message.
--
-- Costs in redis.calls, with k waiters granted or dead ones removed, at most 100 of them a script:
--   fits 1; grant 5 to 6; drop_dead 4 to 5; remove 2 to 4; advance 3 + 8 k. Each call O(log n) for n places of the queue.

-- Set by interop.lua, for queues that share a key with other programs.
local own_key, give_key, keep

local moved = {}
local function queue(path)
  local kind = string.match(path, '^[^/]*')
  local q = {path = path, holders = root .. path .. '/holders', waiters = root .. path .. '/waiters'}
  if kind == 'election' then
    q.values = root .. path .. '/values'
  end
  q.observed = q.values or kind == 'double_barrier'
  q.shares_key = kind == 'interop'
  return q
end

local function parts(member)
  return string.match(member, '^([^:]+):([^:]+):(.+)$')
end

-- Returns the token or '-', the mode and the path of an entry; nothing for one that an operator has ended.
local function read_entry(entry)
  return string.match(entry or '', '^([%d-]+) (%S+) (.*)$')
end

local function field(member)
  local session, its_nonce = parts(member)
  return session .. ':' .. its_nonce
end

-- Returns whether `member` fits beside the present holders. A group never does: the join of its last member grants it.
local function fits(q, member)
  local _, _, mode = parts(member)
  local first = redis.call('ZRANGE', q.holders, 0, 0)[1]
  if first then
    local _, _, its_mode = parts(first)
    return mode == 's' and its_mode == 's'
  end
  return string.sub(mode, 1, 1) ~= 'g' and (not q.shares_key or own_key(q, member))
end

-- Makes a waiter a holder, under another mode if `as` is given. First the holder, then the waiter's place: an error in
-- between leaves one place too many, which a removal takes out of both.
local function grant(q, member, token, as)
  local session, its_nonce, mode = parts(member)
  token, mode = int(token or next_token()), as or mode
  redis.call('ZADD', q.holders, token, session .. ':' .. its_nonce .. ':' .. mode)
  redis.call('ZREM', q.waiters, member)
  redis.call('HSET', root .. 'held/' .. session, its_nonce, token .. ' ' .. mode .. ' ' .. q.path)
  moved[q.path] = q
  return token
end

-- Takes a member out of the holders and the waiters: an error of an earlier script may have left it in both. Returns its
-- token if it held, and the waiter whose predecessor it was.
local function remove(q, member)
  local behind
  local token = redis.call('ZSCORE', q.holders, member)
  if token then
    local last = redis.call('ZRANGE', q.holders, -1, -1)[1]
    redis.call('ZREM', q.holders, member)
    redis.call('ZREM', q.waiters, member)
    behind = last == member and redis.call('ZRANGE', q.waiters, 0, 0)[1] or nil
    moved[q.path] = q
    if q.shares_key then
      give_key(q, member)
    end
  else
    local rank = redis.call('ZRANK', q.waiters, member)
    if not rank then
      return
    end
    redis.call('ZREM', q.waiters, member)
    behind = redis.call('ZRANGE', q.waiters, rank, rank)[1]
  end
  if q.values then
    redis.call('HDEL', q.values, field(member))
  end
  return token, behind
end

-- Removes a place of a dead session that is in the way. The sweep of the session finds nothing here any more.
local function drop_dead(q, member)
  local session, its_nonce = parts(member)
  remove(q, member)
  redis.call('HDEL', root .. 'held/' .. session, its_nonce)
  -- A detached session has what it keeps in an index of its own.
  redis.call('HDEL', root .. 'kept/' .. session, its_nonce)
  most = most - 1
end

-- Grants as long as the first waiter fits. `behind`, a set, has the waiters whose predecessors went: they look again, and
-- then sleep until the lease of another one ends.
local function advance(q, behind)
  while true do
    local member = redis.call('ZRANGE', q.waiters, 0, 0)[1]
    if not member then
      break
    end
    local session, its_nonce = parts(member)
    if most <= 0 then
      redis.call('ZADD', deadlines, int(now()), 'w/' .. q.path)
      again = 1
      break
    elseif left(session) <= 0 then
      drop_dead(q, member)
      local head = redis.call('ZRANGE', q.waiters, 0, 0)[1]
      if head then
        behind[head] = true
      end
    elseif fits(q, member) then
      most = most - 1
      behind[member] = nil
      notify(session, its_nonce .. ' ' .. grant(q, member))
    else
      break
    end
  end
  for member in pairs(behind) do
    -- It may be granted or gone by now.
    if redis.call('ZSCORE', q.waiters, member) then
      local session, its_nonce = parts(member)
      notify(session, its_nonce)
    end
  end
end

-- Notifies the observers of what this script has changed: 1 to 4 calls for each election, 1 to 2 for each double barrier.
-- A vacancy draws a token, so that the version of a vacancy is above that of the leader before it.
local function announce()
  for path, q in pairs(moved) do
    local vacant = q.observed and redis.call('EXISTS', q.holders) == 0
    if q.values and vacant then
      next_token()
    end
    if q.values or vacant then
      redis.call('SPUBLISH', root .. 'topic/' .. path, '')
    end
  end
  moved = {}
end

local function free_place(session, its_nonce, entry, touched)
  local _, mode, path = read_entry(entry)
  if not path then
    return
  end
  local due = 'w/' .. path
  touched[due] = touched[due] or {}
  local _, behind = remove(queue(path), session .. ':' .. its_nonce .. ':' .. mode)
  if behind then
    touched[due][behind] = true
  end
end
for first in string.gmatch('-0123456789', '.') do
  free[first] = free_place
end

settle.w = function(path, behind)
  advance(queue(path), behind)
end
