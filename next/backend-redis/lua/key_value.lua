-- Keys with revisions. A library of `kv` and `sweep`.
--
-- A key is a string, `<created> <modified> <version> <session or ->`, a newline, and the value: one call reads it and one
-- writes it. A leased key is listed in its session's index under its path, as `k`.
--
-- `revision` has two numbers: the revision of the namespace, and that of the last removal, since what is absent has no revision
-- of its own.
--
-- Numbers stay text: to read one and to write it again costs more than a call.
--
-- Costs in redis.calls: read_key 1, of a leased key 2; write_key 2, remove_key 2, and 1 or 2 more for a leased one. All O(1).

local revision_key = root .. 'revision'

local function revisions()
  return string.match(redis.call('GET', revision_key) or '0 0', '^(%d+) (%d+)$')
end

-- Follows the clock, so that a revision is never given twice, even after the server has lost its newest writes.
local function next_revision(last)
  return int(math.max(last + 1, now()))
end

local function set_revisions(last, removed)
  redis.call('SET', revision_key, last .. ' ' .. removed)
end

local function tell_observers(path)
  redis.call('SPUBLISH', root .. 'topic/' .. path, '')
end

-- Moves a key from the session that it ends with to another; `-` is none.
local function bind(path, from, to)
  if from ~= to then
    if from ~= '-' then redis.call('HDEL', root .. 'held/' .. from, path) end
    if to ~= '-' then redis.call('HSET', root .. 'held/' .. to, path, 'k') end
  end
end

local function remove_key(path, owner)
  redis.call('DEL', root .. path)
  bind(path, owner, '-')
  tell_observers(path)
end

-- Reads a key as it is stored, whatever became of its session.
local function stored(path)
  local text = redis.call('GET', root .. path)
  if text then
    local created, modified, version, owner, value = string.match(text, '^(%d+) (%d+) (%d+) (%S+)\n(.*)$')
    return {created = created, modified = modified, version = version, owner = owner, value = value}
  end
end

-- Reads a key. One that a dead session has leased is absent: it is removed here and now.
local function read_key(path)
  local found = stored(path)
  if found and found.owner ~= '-' and left(found.owner) <= 0 then
    local last = next_revision((revisions()))
    remove_key(path, found.owner)
    set_revisions(last, last)
    return
  end
  return found
end

free.k = function(session, path)
  local found = stored(path)
  if found and found.owner == session then
    local last = next_revision((revisions()))
    remove_key(path, session)
    set_revisions(last, last)
  end
end
