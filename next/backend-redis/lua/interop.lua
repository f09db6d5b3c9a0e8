-- Locks whose verbatim name is a key of other programs: redis-py, redlock, `SET NX PX`. A library of `wait_interop`, `sweep`
-- and `admin`. Their queues are `interop/<name>`. The holder owns the key, a string `<root><session>:<nonce>` with a PX
-- that follows the session's lease. Others set it with NX and delete it if it is theirs, so they and ours exclude each other.
--
-- 2 to 4 redis.calls for each grant and each removal, O(1).

-- How often, in microseconds, the first waiter looks after a key of another program: they send no notification.
local slow_look = 100000

-- Returns the name of a path: `escape` of core, backwards.
local function verbatim(path)
  local escaped = string.match(path, '/(.*)$')
  return (string.gsub(escaped, '%%(%x%x)', function(digits)
    return string.char(tonumber(digits, 16))
  end))
end

local function value_of(member)
  return root .. field(member)
end

-- Takes the key for a member. If another program has it, leaves in the queue how long to wait before the next look, or the
-- type of a key that is no lock of this sort.
function own_key(q, member)
  local key, mine = verbatim(q.path), value_of(member)
  local session = parts(member)
  local rest = math.max(1, math.floor(left(session) / 1000))
  if redis.call('SET', key, mine, 'NX', 'PX', int(rest)) then
    return true
  end
  -- A key of another type must not stop a hand-off in the middle.
  local value = redis.pcall('GET', key)
  if value == mine then
    return true
  elseif type(value) == 'table' then
    q.foreign_kind = redis.call('TYPE', key).ok
  end
  local expires = redis.call('PTTL', key)
  q.foreign_rest = expires >= 0 and math.min(expires * 1000 + 1000, slow_look) or slow_look
  return false
end

-- Deletes the key if it is the member's.
function give_key(q, member)
  local key = verbatim(q.path)
  if redis.pcall('GET', key) == value_of(member) then
    redis.call('DEL', key)
  end
end

-- Lets the keys of my holdings expire with the session's lease. Holdings whose key is gone, or another program's, have
-- ended. ARGV: 6 cursor. ok, next cursor, nonces of the ended ones. 3 redis.calls for each of about 100 entries.
function keep()
  allow_full_memory()
  local refused = enter(true)
  if refused then return refused end
  local page = redis.call('HSCAN', held, ARGV[6], 'COUNT', 100)
  local answer = {'ok', page[1]}
  for i = 1, #page[2], 2 do
    local its_nonce = page[2][i]
    local token, mode, path = read_entry(page[2][i + 1])
    if token and token ~= '-' and string.sub(path, 1, 8) == 'interop/' then
      local q, member = queue(path), me .. ':' .. its_nonce .. ':' .. mode
      if redis.pcall('GET', verbatim(path)) == value_of(member) then
        redis.call('PEXPIRE', verbatim(path), int(math.floor(left(me) / 1000)))
      else
        local _, behind = remove(q, member)
        redis.call('HSET', held, its_nonce, '!')
        advance(q, behind and {[behind] = true} or {})
        answer[#answer + 1] = its_nonce
      end
    end
  end
  return answer
end
