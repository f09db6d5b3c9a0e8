-- The uncontended way of a lock, before anything is defined: defining the functions of the libraries doubles the time of
-- an uncontended lock. Everything else falls through and changes nothing here.
--
-- join     6 calls, 7 if the clock is behind, O(1)
-- leave    6 calls, O(1)
do
  local root, session = KEYS[1], ARGV[2]
  local record, index = root .. 'session/' .. session, root .. 'held/' .. session
  if ARGV[1] == 'join' then
    local path, mode = ARGV[6], ARGV[7]
    local holders = root .. path .. '/holders'
    local facts = redis.call('HMGET', record, 'epoch', 'deadline', 'detached')
    if facts[1] == ARGV[3] and not facts[3] and redis.call('EXISTS', holders, root .. path .. '/waiters') == 0 then
      local time = redis.call('TIME')
      local now = time[1] * 1000000 + time[2]
      if (tonumber(facts[2]) or 0) > now then
        local token = string.format('%.0f', now)
        local last = tonumber(redis.call('SET', root .. 'token', token, 'GET') or 0) or 0
        if last >= now then
          token = string.format('%.0f', last + 1)
          redis.call('SET', root .. 'token', token)
        end
        -- An entry that is there is of a holding that an operator has ended, or that the server has lost.
        if redis.call('HSETNX', index, ARGV[5], token .. ' ' .. mode .. ' ' .. path) == 1 then
          redis.call('ZADD', holders, token, session .. ':' .. ARGV[5] .. ':' .. mode)
          return {'granted', token, 0}
        end
      end
    end
  elseif ARGV[1] == 'leave' and #ARGV == 8 and string.find(ARGV[7], '^[rw_]*lock/') then
    local nonce, path = ARGV[6], ARGV[7]
    local facts = redis.call('HMGET', record, 'epoch', 'detached')
    if facts[1] == ARGV[3] and not facts[2] and redis.call('EXISTS', root .. path .. '/waiters') == 0 then
      local entry = redis.call('HGET', index, nonce) or ''
      local token, mode, its_path = string.match(entry, '^(%d+) (%S+) (.*)$')
      local member = session .. ':' .. nonce .. ':' .. (mode or '')
      if token == ARGV[8] and its_path == path and redis.call('ZREM', root .. path .. '/holders', member) == 1 then
        redis.call('HDEL', index, nonce)
        redis.call('HSET', record, 'd' .. ARGV[4], 'leave ' .. ARGV[5] .. ' 1')
        return {'left', '1', 0}
      end
    end
  end
end
