-- An operator's acts. Costs in redis.calls:
--
--   break   ARGV: 6 path, 7 token. Of a claim O(claims of the queue). 10, with a hand-off 21; O(log n)   ok, session, nonce, more | gone
--   floor   ARGV: 6 least token from now on. 1 to 2; O(1)           ok
--   end     the session ARGV[2]. 4; O(log s)                   ok (sweep) | gone

-- An item that is taken from its consumer is available again.
local function break_claim(q)
  local claims = redis.call('HGETALL', q.claims)
  for i = 2, #claims, 2 do
    local session, its_nonce, token = string.match(claims[i], '^([^:]+):([^:]+):(.*)$')
    if token == ARGV[7] then
      local index = root .. 'held/' .. session
      -- Without the entry of the take, which an operator has deleted, there is nothing to mark.
      local _, others = drop_claim(index, q, its_nonce, token)
      if others == 0 then
        redis.call('HSET', index, its_nonce, '!')
        notify(session, '! ' .. its_nonce)
      end
      give_back(q, '@' .. claims[i - 1])
      serve_all()
      return {'ok', session, its_nonce, again}
    end
  end
  return {'gone'}
end

local function break_holding()
  allow_full_memory()
  if string.sub(ARGV[6], 1, 6) == 'queue/' then
    return break_claim(work_queue(ARGV[6]))
  end
  local q = queue(ARGV[6])
  local member = redis.call('ZRANGE', q.holders, ARGV[7], ARGV[7], 'BYSCORE')[1]
  if not member then
    return {'gone'}
  end
  local session, its_nonce = parts(member)
  local _, behind = remove(q, member)
  local facts = redis.call('HMGET', root .. 'session/' .. session, 'epoch', 'detached')
  if facts[2] then
    -- No join is repeated over a detachment, and a mark would be swept before the session could be resumed.
    redis.call('HDEL', root .. 'kept/' .. session, its_nonce)
  elseif facts[1] then
    -- The mark tells a repeated join that the request has ended, rather than giving it a new place. A session that is gone
    -- would leave it for ever.
    redis.call('HSET', root .. 'held/' .. session, its_nonce, '!')
  end
  notify(session, '! ' .. its_nonce)
  advance(q, behind and {[behind] = true} or {})
  return {'ok', session, its_nonce, again}
end

local function raise_floor()
  local last = tonumber(redis.call('GET', root .. 'token') or 0) or 0
  if last < tonumber(ARGV[6]) - 1 then
    redis.call('SET', root .. 'token', int(tonumber(ARGV[6]) - 1))
  end
  return {'ok'}
end

local function end_session()
  if redis.call('EXISTS', record) == 0 then
    return {'gone'}
  end
  allow_full_memory()
  redis.call('HSET', record, 'deadline', '0')
  redis.call('ZADD', deadlines, '0', 's/' .. me)
  notify(me, '!')
  return {'ok'}
end

local steps = {['break'] = break_holding, floor = raise_floor, ['end'] = end_session}
local answer = steps[operation]()
announce()
return answer
