-- uses: barrier, queue
-- Does again what my session did of late and the server may have lost. ARGV, for each: what, the path, and
--   ack     the item's place
--   lift    the token of the hold that was ended
--   unhold  the nonce of the hold that was taken back
-- {ok, how many had to be done}.
in_any_case()
in_any_case()
local refused = enter()
if refused then return refused end

-- Removes an acknowledged item, unless another consumer has it by now.
local function ack(path, place)
  local q = queue.open(path)
  if redis.call('HEXISTS', q.values, place) == 0 then
    return false
  end
  local claim = redis.call('HGET', q.claims, place)
  if claim then
    local session, its_nonce = string.match(claim, '^(.*):(.*):.*$')
    if session ~= me then
      return false
    end
    queue.end_claim(q, me, its_nonce .. ':' .. place)
  end
  redis.call('ZREM', q.ready, place)
  redis.call('ZREM', q.delayed, place)
  queue.forget(q, place)
  return true
end

local function unhold(path, is_meant)
  local hold = find_hold(path)
  if not hold or not is_meant(hold) then
    return false
  end
  end_hold(path, hold)
  return true
end

local again = 0
for i = 5, #ARGV, 3 do
  local what, path, of = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local done
  if what == 'ack' then
    done = ack(path, of)
  elseif what == 'lift' then
    done = unhold(path, function(hold) return text(hold.token) == of end)
  else
    done = unhold(path, function(hold) return hold.session == me and hold.nonce == of end)
  end
  again = again + (done and 1 or 0)
end
return {'ok', again}
