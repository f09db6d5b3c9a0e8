-- Lines: a sorted set of places in the order of their arrival. The first live place holds; of
-- readers, all before the first live writer. Nothing is written down about who holds: it follows
-- from the places, as in etcd's lock recipe. A place's score is its token.
--
-- A writer waits for the place right before it, a reader for the nearest writer before it. Whoever
-- waits knows when the lease of that one ends, and looks then. But a lease may also end early, by a
-- revocation: so whoever buries a dead place tells those who waited for it, if they are others.

-- How many dead places one step buries at most: a step must be short. Those left are met by the
-- next step, which comes at once because the reply says so.
local burials = 100

-- How many readers one step tells at most, of all lines together. The last of them goes on with those behind:
-- `<path>/telling` says who that is. If it never does, the others find out when the lease of the writer that they
-- wait for would have ended. `<path>/told` has the token of the last reader that was told that it holds: one that
-- finds out by itself need not tell those before that.
local most_told, told = 100, 0
local told_kept = 10000 -- ms

local function member_of(session, field, side)
  return session .. ':' .. field .. ':' .. side
end

-- Session, nonce and side of a place.
local function parts_of(member)
  return string.match(member, '^([^:]+):([^:]+):(.)$')
end

-- Whether this line has readers, and so a second set with its writers alone.
local function has_sides(path)
  return kind_of(path) == 'rw_lock'
end

local both_sides, one_side = {'w', 'r'}, {'w'}
local function sides_of(path)
  return has_sides(path) and both_sides or one_side
end

-- For kinds whose watchers want to know: `head_changed[kind](path)` is called when another place
-- has become the first. `forgotten[kind](path, member)` removes what goes with a place,
-- `renamed[kind](path, before, member)` moves it to another member.
local head_changed, forgotten, renamed = {}, {}, {}

-- For kinds whose holder needs more than the first place: `taking[kind](path, member, token)` gets it for
-- the first place and says whether it has it, `asking[kind]` the same as a reply. `keeping[kind](path,
-- member)` says whether a place still has it, `passing[kind](path)` whether somebody has it who stands
-- in no line.
local taking, asking, keeping, passing = {}, {}, {}, {}

local function takes(path, member, token)
  local take = taking[kind_of(path)]
  return not take or take(path, member, token)
end

local function keeps(path, member)
  local keep = keeping[kind_of(path)]
  return not keep or keep(path, member)
end

local function add_place(path, member, side, token)
  redis.call('ZADD', root .. path, text(token), member)
  if side == 'w' and has_sides(path) then
    redis.call('ZADD', root .. path .. '/writers', text(token), member)
  end
end

-- An operator may have removed a writer's place, and not have known of the second set.
local function forget_writer(path, member)
  redis.call('ZREM', root .. path .. '/writers', member)
end

-- Gives a place to another member, where it stands.
local function rename_place(path, before, member, token)
  redis.call('ZREM', root .. path, before)
  if has_sides(path) then
    redis.call('ZREM', root .. path .. '/writers', before)
  end
  local _, _, side = parts_of(member)
  add_place(path, member, side, token)
  local rename = renamed[kind_of(path)]
  if rename then
    rename(path, before, member)
  end
end

-- Takes a place out. `rank` is where it stood.
local function take_out(path, member, rank)
  local kind = kind_of(path)
  redis.call('ZREM', root .. path, member)
  if has_sides(path) then
    redis.call('ZREM', root .. path .. '/writers', member)
  end
  if forgotten[kind] then
    forgotten[kind](path, member)
  end
  if rank == 0 and head_changed[kind] then
    head_changed[kind](path)
  end
  if rank == 0 and has_sides(path) and redis.call('EXISTS', root .. path) == 0 then
    redis.call('DEL', root .. path .. '/told')
  end
end

-- Takes a dead place out. Says false if enough were taken out in this step.
local function bury(path, member, rank)
  if burials == 0 then
    return false
  end
  burials = burials - 1
  local session, field = parts_of(member)
  take_out(path, member, rank)
  unnote(session, field)
  return true
end

local hand_on

-- Whether a place is the one that goes on telling the readers behind it; from now on it is not.
local function was_telling(path, member)
  local mark = root .. path .. '/telling'
  if not has_sides(path) or redis.call('GET', mark) ~= member then
    return false
  end
  redis.call('DEL', mark)
  return true
end

-- Tells those who waited for a place that stood at `rank` and has been taken out.
local function gone_from(path, member, rank)
  local _, _, side = parts_of(member)
  hand_on(path, rank, was_telling(path, member) and 'w' or side)
end

-- The same as `bury`, and tells those who waited for it.
local function bury_and_tell(path, member, rank)
  if not bury(path, member, rank) then
    return false
  end
  gone_from(path, member, rank)
  return true
end

-- Whether a place holds; if not, which place's end it waits for.
local function standing(path, member, side, token)
  local key = root .. path
  while true do
    local ahead, rank
    if side == 'w' then
      rank = redis.call('ZRANK', key, member) - 1
      ahead = rank >= 0 and redis.call('ZRANGE', key, rank, rank)[1]
    else
      ahead = redis.call('ZREVRANGEBYSCORE', key .. '/writers', '(' .. text(token), '-inf', 'LIMIT', 0, 1)[1]
      rank = ahead and redis.call('ZRANK', key, ahead)
    end
    if not ahead then
      return true
    end
    if rank then
      -- Only this writer waited for the place right before it; for a writer, other readers may.
      local buried = side == 'w' and bury or bury_and_tell
      if alive((parts_of(ahead))) or not buried(path, ahead, rank) then
        return false, ahead
      end
    else
      forget_writer(path, ahead)
    end
  end
end

-- Whether a place waits right behind one that holds. Nobody else would notice if an operator removed
-- that one.
local function is_next(path, member, side)
  local rank = redis.call('ZRANK', root .. path, member)
  if side == 'w' and has_sides(path) then
    return rank == 1 or redis.call('ZRANGE', root .. path .. '/writers', 0, 0)[1] == member
  end
  return rank == 1
end

-- The reply about a place: it holds, or waits for another that has so many milliseconds left, and
-- whether it is the next.
local function answer(path, member, side, token)
  local holding, ahead = standing(path, member, side, token)
  if holding then
    local ask = asking[kind_of(path)]
    return ask and ask(path, member, token) or {'held', token}
  end
  return {'wait', left((parts_of(ahead))), is_next(path, member, side) and 1 or 0}
end

-- Whether a newcomer on `side` would hold at once, with nobody passed over; if not, whether that is only
-- because more dead are before it than one step buries.
local function is_free(path, side)
  local key = root .. path
  if side == 'r' then
    key = key .. '/writers'
  end
  while true do
    local member = redis.call('ZRANGE', key, 0, 0)[1]
    if not member then
      local passed = passing[kind_of(path)]
      return not (passed and passed(path))
    end
    local rank = side == 'w' and 0 or redis.call('ZRANK', root .. path, member)
    if not rank then
      forget_writer(path, member)
    elseif alive((parts_of(member))) then
      return false
    elseif not bury_and_tell(path, member, rank) then
      return false, true
    end
  end
end

-- The reply of a newcomer that takes a place only if it holds at once, and does not; nothing if it does.
local function turned_away(path, side)
  local free, more = is_free(path, side)
  if not free then
    return {more and 'more' or 'none'}
  end
end

-- The first live place as `{member, token}`, nothing if there is none; false if too many dead ones are
-- before it for one step.
local function live_head(path)
  while true do
    local first = redis.call('ZRANGE', root .. path, 0, 0, 'WITHSCORES')
    if not first[1] then
      return nil
    elseif alive((parts_of(first[1]))) then
      return first
    elseif not bury_and_tell(path, first[1], 0) then
      return false
    end
  end
end

-- Tells those who waited for a place on `side` that stood at `rank` and has gone.
function hand_on(path, rank, side)
  local key = root .. path
  local writer -- where the first writer stands
  local readers, last = 0, nil
  local function done()
    if readers > 1 and last then
      redis.call('SET', key .. '/told', text(last), 'PX', told_kept)
    end
  end
  while true do
    local place = redis.call('ZRANGE', key, rank, rank, 'WITHSCORES')
    local member, token = place[1], tonumber(place[2])
    if not member then
      return done()
    end
    local session, field, its_side = parts_of(member)
    if not alive(session) then
      if not bury(path, member, rank) then
        return done()
      end
      -- Who waited for the dead one waits for nothing now.
      if its_side == 'w' or was_telling(path, member) then
        side, writer = 'w', nil
      end
    elseif its_side == 'w' then
      tell(session, field, rank == 0 and takes(path, member, token) and token)
      return done()
    elseif side == 'r' then
      return done() -- readers do not wait for readers
    else
      if not writer then
        local first = redis.call('ZRANGE', key .. '/writers', 0, 0, 'WITHSCORES')
        writer = tonumber(first[2]) or math.huge
      end
      told, readers = told + 1, readers + 1
      if token < writer then
        last = token
      end
      if told >= most_told then
        if token < writer then
          redis.call('SET', key .. '/telling', member, 'PX', text(left(session)))
        end
        tell(session, field) -- it looks, and goes on if it holds
        return done()
      end
      tell(session, field, token < writer and token)
      rank = rank + 1
    end
  end
end

-- Tells whoever may hold now although nobody handed on: a place was removed by an operator, or who was
-- to go on telling is gone. It was found at `rank`.
local function taken_silently(path, rank)
  hand_on(path, rank < most_told and 0 or rank, 'w')
  local changed = head_changed[kind_of(path)]
  if changed then
    changed(path)
  end
end

-- The same by a reader that was told by nobody. All those behind a writer that has gone find out at about the same
-- time: the first one tells the others.
local function freed_silently(path, token, rank)
  local key = root .. path
  if redis.call('EXISTS', key .. '/telling') == 1 then
    return
  end
  local known = redis.call('GET', key .. '/told') or '0'
  if token > tonumber(known) then
    local next_one = redis.call('ZRANGEBYSCORE', key, '(' .. known, '+inf', 'LIMIT', 0, 1)[1]
    -- Whoever goes on with it must be one that waits: one behind this one.
    hand_on(path, math.max(redis.call('ZRANK', key, next_one), rank - most_told / 2), 'w')
  end
end

-- Removes a place, and says whether it was there.
local function remove_place(path, member)
  local rank = redis.call('ZRANK', root .. path, member)
  if not rank then
    return false
  end
  take_out(path, member, rank)
  gone_from(path, member, rank)
  return true
end

-- My place under `field`, its token and its side; nothing if there is none.
local function my_place(path, field)
  for _, side in ipairs(sides_of(path)) do
    local member = member_of(me, field, side)
    local token = redis.call('ZSCORE', root .. path, member)
    if token then
      return member, tonumber(token), side
    end
  end
end

-- The place of which a grant's key says this: `<session>:<nonce>`.
local function has_place(path, who, token)
  for _, side in ipairs(sides_of(path)) do
    local member = who .. ':' .. side
    if tonumber(redis.call('ZSCORE', root .. path, member)) == token and keeps(path, member) then
      return member, side
    end
  end
end

-- Whether it holds.
local function place_holds(path, who, token)
  local member, side = has_place(path, who, token)
  return member and alive((parts_of(member))) and (standing(path, member, side, token)) == true
end

local function free_place(path, session, field)
  for _, side in ipairs(sides_of(path)) do
    local member = member_of(session, field, side)
    if not remove_place(path, member) then
      take_out(path, member) -- what else there is of it: an operator may have removed the place
    end
  end
  unnote(session, field)
end

local function is_line(path)
  return freeing[kind_of(path)] == free_place
end

for _, kind in ipairs({'lock', 'interop', 'election', 'rw_lock'}) do
  freeing[kind] = free_place
  holds[kind] = place_holds
end
