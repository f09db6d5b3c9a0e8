-- Comes before everything else in the script of a lock: nobody is in the line. As long as this applies,
-- nothing of what follows is even defined, which is half of the time that a lock takes.
do
  local root, session, line = KEYS[1], ARGV[1], KEYS[1] .. ARGV[5]
  local facts = redis.call('HMGET', root .. 'session/' .. session, 'connection', 'detached')
  if facts[1] == ARGV[2] and not facts[2] and redis.call('EXISTS', line) == 0 then
    local token = redis.call('INCR', root .. 'last')
    if token > 1e15 then -- else it was lost: see `next_token`
      redis.call('ZADD', line, string.format('%.0f', token), session .. ':' .. ARGV[4] .. ':w')
      redis.call('HSET', root .. 'held/' .. session, ARGV[4], ARGV[5])
      return {'held', token}
    end
  end
end
