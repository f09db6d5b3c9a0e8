-- Locks that are shared with other programs. Ours stand in a line as always, at `interop/<name>`; the
-- first of them must own, beside its place, the key of the verbatim name: a string that others set with
-- NX and PX, and that they respect for as long as it is there. Its value is the key and member of the
-- place: `<root>interop/<name>#<session>:<nonce>`, less the side.
--
-- `<root>owned/<session>` has what a session was given, `<nonce>:<path>` by token. Who is in there and
-- does not find its value under the key has lost it, and never takes it again.

-- How often, in milliseconds, the first of the line looks after a key that somebody else has: they
-- tell nobody when they release it.
local slow_check = 100

-- The name of an interop line as it was given: `escape` in core, backwards.
local function name_of(path)
  local escaped = string.match(path, '/(.*)$')
  if not string.find(escaped, '%', 1, true) then
    return escaped
  end
  return (string.gsub(escaped, '%%(%x%x)', function(digits)
    return string.char(tonumber(digits, 16))
  end))
end

local function value_of(path, member)
  local session, field = parts_of(member)
  return root .. path .. '#' .. session .. ':' .. field
end

local function entry_of(path, member)
  local session, field = parts_of(member)
  return root .. 'owned/' .. session, field .. ':' .. path
end

-- What stands under a key: a value, or false. And for what is no string, what it is.
local function value_at(name)
  local value = redis.pcall('GET', name)
  if type(value) ~= 'table' then
    return value
  end
  if not string.find(value.err, 'WRONGTYPE', 1, true) then
    redis.call('GET', name) -- the same error, with its line
  end
  local fields = redis.pcall('HLEN', name)
  return false, type(fields) == 'number' and 'hash' or 'other'
end

-- Whether a value is that of a place of ours which is not there any more.
local function is_left_over(path, value)
  local ours = root .. path .. '#'
  if string.sub(value, 1, #ours) ~= ours then
    return false
  end
  local who = string.sub(value, #ours + 1)
  local session = parts_of(who .. ':w')
  return not session or not alive(session) or not redis.call('ZSCORE', root .. path, who .. ':w')
end

-- Without errors: burials must not fail because of what others do, or of rights that the undertaker lacks.
local function has_key(path, member)
  return redis.pcall('GET', name_of(path)) == value_of(path, member)
end

-- Takes the key for the first of the line. Says whether it has it; if not, in how many milliseconds
-- to look again, and what the key is if it is nothing to wait for.
local function take_key(path, member, token)
  if has_key(path, member) then
    return true
  end
  local owned, entry = entry_of(path, member)
  if redis.call('ZSCORE', owned, entry) then
    return false, slow_check -- lost; the next renewal finds it
  end
  local name = name_of(path)
  local value, other = value_at(name)
  if other then
    return false, slow_check, other
  elseif value and not is_left_over(path, value) then
    local rest = redis.call('PTTL', name) -- negative for one that has no end
    return false, rest >= 0 and math.min(rest + 1, slow_check) or slow_check
  end
  redis.call('SET', name, value_of(path, member), 'PX', text(left((parts_of(member)))))
  redis.call('ZADD', owned, text(token), entry)
  return true
end

local function drop_key(path, member)
  redis.call('ZREM', entry_of(path, member))
  if has_key(path, member) then
    redis.pcall('DEL', name_of(path))
  end
end

taking.interop = take_key
keeping.interop = has_key
forgotten.interop = drop_key

function renamed.interop(path, before, member)
  local owned, entry = entry_of(path, before)
  local token = redis.call('ZSCORE', owned, entry)
  if token and has_key(path, before) then
    redis.call('SET', name_of(path), value_of(path, member), 'PX', text(left(me)))
    local _, now_entry = entry_of(path, member)
    redis.call('ZREM', owned, entry)
    redis.call('ZADD', owned, token, now_entry)
  end
end

-- Whether somebody else has the key while nobody stands in the line.
function passing.interop(path)
  local value = value_at(name_of(path))
  return value and not is_left_over(path, value)
end

-- The reply about the first place of the line.
function asking.interop(path, member, token)
  local taken, again, other = take_key(path, member, token)
  if taken then
    return {'held', token}
  elseif other then
    local session, field = parts_of(member)
    free_place(path, session, field)
    return {'foreign', other}
  end
  return {'wait', again, 1}
end
