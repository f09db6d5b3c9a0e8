-- The steps of wait queues. Costs in redis.calls, counted on a server, with the 2 of fast.lua; n places in the queue, k waiters
-- granted or dead ones removed (at most 100), 11 calls for each of them:
--
--   join       free 6 by fast.lua, else 13; contended 14, `try` 11; a look 7 if granted, 11 if not             O(log n)
--   campaign   14 if free, with the message for observers; contended 13                                      O(log n)
--   enter      13 to 15; the last of a group of g: 5 g + 11                                                  O(g log n)
--   leave      6 by fast.lua; else 4 + 7 for each of d departures, with a hand-off 24; of a leader 4 more    O((d + k) log n)
--   downgrade  12, with a waiter behind 16                                                                   O((1 + k) log n)
--   proclaim   8                                                                                             O(log n)
--   head       5, of a vacancy 3                                                                             O(log n)
--   inside     4                                                                                             O(log n)
--
-- Answers end with 1 if a sweep has to go on. `sweep` alone: more dead sessions are in the way than one script removes.

-- Returns the place ahead of a member of rank `rank`, or of a newcomer.
local function ahead_of(q, rank)
  if rank and rank > 0 then
    return redis.call('ZRANGE', q.waiters, rank - 1, rank - 1)[1]
  elseif not rank then
    return redis.call('ZRANGE', q.waiters, -1, -1)[1]
  end
end

-- Adds a place at the end of the waiters.
local function place(q, member, mode)
  redis.call('ZADD', q.waiters, int(next_token()), member)
  redis.call('HSET', held, nonce, '- ' .. mode .. ' ' .. q.path)
end

-- Returns my member, and its token if it holds; or a refusal. The entry has the present mode.
local function find(q, mode)
  local entry = redis.call('HGET', held, nonce)
  if entry and string.sub(entry, 1, 1) == '!' then
    return nil, nil, {'revoked'}
  elseif entry then
    -- A request that is there already looks, which needs no memory.
    allow_full_memory()
    local _, its_mode = read_entry(entry)
    mode = its_mode or mode
  end
  local member = me .. ':' .. nonce .. ':' .. mode
  return member, redis.call('ZSCORE', q.holders, member)
end

-- ARGV: 6 path, 7 mode, 8 `wait` or `try`, 9 value of a candidate.
-- granted, token, more | waiting, ms until the lease ahead ends, more | busy | revoked | foreign, type | sweep
local function join()
  local refused = enter(true)
  if refused then return refused end
  local q, mode = queue(ARGV[6]), ARGV[7]
  local member, token, ended = find(q, mode)
  if ended then return ended end
  if token then
    return {'granted', token, again}
  end
  while true do
    local rank = redis.call('ZRANK', q.waiters, member)
    local ahead = ahead_of(q, rank)
    local rest
    if not ahead then
      if fits(q, member) then
        if q.values and not rank then
          redis.call('HSET', q.values, field(member), '0 0 ' .. ARGV[9])
        end
        token = grant(q, member)
        -- After an error of an earlier script, the waiters behind may fit too.
        if rank then advance(q, {}) end
        return {'granted', token, again}
      end
      ahead = redis.call('ZRANGE', q.holders, -1, -1)[1]
      if not ahead then -- another program has the key
        local kind
        rest, kind = q.foreign_rest, q.foreign_kind
        if kind then return {'foreign', kind} end
      end
    end
    rest = rest or left((parts(ahead)))
    if rest > 0 then
      if ARGV[8] == 'try' then
        return {'busy', 0, again}
      end
      if not rank then
        if q.values then
          redis.call('HSET', q.values, field(member), '0 0 ' .. ARGV[9])
        end
        place(q, member, mode)
      end
      return {'waiting', math.ceil(rest / 1000), again}
    elseif most <= 0 then
      return {'sweep'}
    end
    -- A dead session is in the way. Its place goes here and now, without the rest of what it had: a mass death elsewhere
    -- does not delay this queue.
    drop_dead(q, ahead)
    advance(q, {})
    token = redis.call('ZSCORE', q.holders, member)
    if token then
      return {'granted', token, again}
    end
  end
end

-- Returns the first living holder, its token and the microseconds that its lease lasts, and removes the dead before it.
-- Nothing if there is none, false if there are too many dead ones for one script.
local function first_holder(q)
  while true do
    local member, token = unpack(redis.call('ZRANGE', q.holders, 0, 0, 'WITHSCORES'))
    if not member then return end
    local rest = left((parts(member)))
    if rest > 0 then
      return member, token, rest
    elseif most <= 0 then
      return false
    end
    drop_dead(q, member)
    advance(q, {})
  end
end

-- ARGV: 6 path, 7 size of the group.
-- granted, token, more | waiting, ms, more | full | size, the other size | revoked | sweep
local function enter_group()
  local refused = enter(true)
  if refused then return refused end
  local q, size, mode = queue(ARGV[6]), tonumber(ARGV[7]), 'g' .. ARGV[7]
  local member, token, ended = find(q, mode)
  if ended then return ended end
  if token then
    return {'granted', token, again}
  end
  local holder = first_holder(q)
  if holder then
    return {'full'}
  end
  advance(q, {}) -- removes the dead at the head
  if holder == false or again == 1 then
    return {'sweep'}
  end
  local _, _, its_mode = parts(redis.call('ZRANGE', q.waiters, 0, 0)[1] or member)
  if its_mode ~= mode then
    return {'size', string.sub(its_mode, 2)}
  end
  local rank = redis.call('ZRANK', q.waiters, member)
  local all = {}
  if redis.call('ZCARD', q.waiters) + (rank and 0 or 1) >= size then
    -- None of those that count may be dead.
    for _, other in ipairs(redis.call('ZRANGE', q.waiters, 0, -1)) do
      if left((parts(other))) > 0 then
        all[#all + 1] = other
      elseif most <= 0 then
        return {'sweep'}
      else
        drop_dead(q, other)
      end
    end
    if not rank then
      all[#all + 1] = member
    end
  end
  if #all >= size then
    local first = next_token(#all)
    for index, other in ipairs(all) do
      local its_token = grant(q, other, first + index - 1, mode .. '.' .. int(first))
      if other == member then
        token = its_token
      else
        local session, its_nonce = parts(other)
        notify(session, its_nonce .. ' ' .. its_token)
      end
    end
    return {'granted', token, again}
  elseif not rank then
    place(q, member, mode)
  end
  return {'waiting', math.ceil(left(me) / 1000), again}
end

-- ARGV from 6 on, for each departure: its nonce, path, and token or ''.
-- left, a 1 or 0 for each, more. Whatever is there goes, even under another token: it is of a lost history then.
local function leave()
  allow_full_memory()
  local refused = enter(false)
  if refused then return refused end
  if before then
    return {'left', before, 0}
  end
  local results, queues = {}, {}
  for i = 6, #ARGV, 3 do
    local its_nonce, path, token = ARGV[i], ARGV[i + 1], ARGV[i + 2]
    local entry = redis.call('HGET', held, its_nonce)
    local q = queue(path)
    -- From the entry: it may have been downgraded. Without one, whatever it can be.
    local _, mode = read_entry(entry)
    local modes = mode and {mode} or string.sub(path, 1, 8) == 'rw_lock/' and {'x', 's'} or {'x'}
    local score, gone
    for _, its_mode in ipairs(modes) do
      local member = me .. ':' .. its_nonce .. ':' .. its_mode
      local its_score, behind = remove(q, member)
      score = score or its_score
      if its_score or behind then
        queues[path] = queues[path] or {}
        queues[path][behind or ''] = true
      end
    end
    if entry then
      redis.call('HDEL', held, its_nonce)
      gone = token == '' and mode ~= nil
    end
    results[#results + 1] = (gone or score and (token == '' or tonumber(score) == tonumber(token))) and '1' or '0'
  end
  for path, behind in pairs(queues) do
    behind[''] = nil
    advance(queue(path), behind)
  end
  local result = table.concat(results)
  remember(result)
  return {'left', result, again}
end

-- ARGV: 6 nonce of the holding, 7 path, 8 token. ok, more | gone
local function downgrade()
  allow_full_memory()
  local refused = enter(true)
  if refused then return refused end
  if before then
    return {before, 0}
  end
  local q, its_nonce, token = queue(ARGV[7]), ARGV[6], ARGV[8]
  local member = me .. ':' .. its_nonce .. ':'
  if tonumber(redis.call('ZSCORE', q.holders, member .. 'x') or 0) ~= tonumber(token) then
    local done = tonumber(redis.call('ZSCORE', q.holders, member .. 's') or 0) == tonumber(token)
    return {done and 'ok' or 'gone', 0}
  end
  redis.call('ZADD', q.holders, token, member .. 's')
  redis.call('ZREM', q.holders, member .. 'x')
  redis.call('HSET', held, its_nonce, token .. ' s ' .. q.path)
  remember('ok')
  advance(q, {})
  return {'ok', again}
end

-- ARGV: 6 path, 7 token, 8 number, 9 value. ok | gone
local function proclaim()
  local refused = enter(true)
  if refused then return refused end
  local q, name = queue(ARGV[6]), me .. ':' .. nonce
  if tonumber(redis.call('ZSCORE', q.holders, name .. ':x') or 0) ~= tonumber(ARGV[7]) then
    return {'gone'}
  end
  local known = string.match(redis.call('HGET', q.values, name) or '', '^(%d+) ')
  if tonumber(ARGV[8]) > (tonumber(known) or 0) then
    redis.call('HSET', q.values, name, ARGV[8] .. ' ' .. int(next_token()) .. ' ' .. ARGV[9])
    moved[q.path] = q
  end
  return {'ok'}
end

-- ARGV: 6 path. leader, token, version, value, ms until its lease ends | vacant, version | sweep
local function head()
  local refused = enter(false)
  if refused then return refused end
  local q = queue(ARGV[6])
  local member, token, rest = first_holder(q)
  if member == false then
    return {'sweep'}
  elseif not member then
    announce() -- draws the version of a vacancy that began here
    return {'vacant', redis.call('GET', root .. 'token') or '0'}
  end
  local entry = redis.call('HGET', q.values, field(member)) or ''
  local version, value = string.match(entry, '^%d+ (%d+) (.*)$')
  version = math.max(tonumber(version) or 0, tonumber(token))
  return {'leader', int(tonumber(token)), int(version), value or '', math.ceil(rest / 1000)}
end

-- ARGV: 6 path, 7 token of a former participant. none | inside, ms until the lease of one of them ends | sweep
local function inside()
  local refused = enter(false)
  if refused then return refused end
  local member, _, rest = first_holder(queue(ARGV[6]))
  if member == false then
    return {'sweep'}
  end
  -- A later generation has a greater first token.
  local first = member and tonumber(string.match(member, '%.(%d+)$'))
  if not member or (first or 0) > tonumber(ARGV[7]) then
    return {'none'}
  end
  return {'inside', math.ceil(rest / 1000)}
end

local steps = {
  join = join, campaign = join, enter = enter_group, leave = leave, downgrade = downgrade, proclaim = proclaim,
  head = head, inside = inside, keep = keep,
}
local answer = steps[operation]()
announce()
return answer
