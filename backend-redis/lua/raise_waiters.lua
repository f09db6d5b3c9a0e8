-- uses: line
-- Gives those of a session's places that wait, and all others that wait in the same lines and rooms, tokens of at
-- least the floor, in their order. ARGV: the floor, a session, the cursor in its index.
-- {ok, the next cursor}; {again}: there is more to be done before the cursor moves.
local floor, session, cursor = tonumber(ARGV[5]), ARGV[6], ARGV[7]
-- How many places one step changes at most.
local work = 500

-- The rank of the first place in a line that waits.
local function first_waiting(path)
  local key = root .. path
  if has_sides(path) then
    local first = redis.call('ZRANGE', key, 0, 0)[1]
    local _, _, side = parts_of(first)
    if side == 'r' then
      local writer = redis.call('ZRANGE', key .. '/writers', 0, 0)[1]
      return writer and redis.call('ZRANK', key, writer)
    end
  end
  return 1
end

-- From the last one on, so that their order never changes, and that the first one to wait is changed last.
local function raise_line(path)
  local key, first = root .. path, first_waiting(path)
  local below = first and redis.call('ZCOUNT', key, '-inf', '(' .. text(floor)) - first or 0
  while below > 0 and work > 0 do
    below, work = below - 1, work - 1
    local member = redis.call('ZRANGE', key, first + below, first + below)[1]
    local _, _, side = parts_of(member)
    add_place(path, member, side, floor + below)
  end
  return below > 0
end

-- A room that has closed has participants with tokens; one that is open has none yet.
local function raise_room(path)
  local key = root .. path
  if redis.call('HGET', key .. '/room', 'closed') then
    return
  end
  local members = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
  if #members == 0 or tonumber(members[2]) >= floor then
    return
  end
  for i = 1, #members, 2 do
    redis.call('ZADD', key, text(floor + i), members[i])
  end
  redis.call('HSET', key .. '/room', 'first', text(floor + 1))
  work = work - #members / 2
end

local found, paths = redis.call('HSCAN', root .. 'held/' .. session, cursor, 'COUNT', 100), {}
for i = 2, #found[2], 2 do
  paths[found[2][i]] = true
end
for path in pairs(paths) do
  if redis.call('EXISTS', root .. path) == 0 then
    -- It has gone.
  elseif is_line(path) and raise_line(path) then
    return {'again'}
  elseif kind_of(path) == 'double_barrier' then
    raise_room(path)
  end
  if work <= 0 then
    return {'again'}
  end
end
return {'ok', found[1]}
