-- A new session, with so many milliseconds to live. {ok, another session whose time is over, if there is one}.
local ttl = tonumber(ARGV[5])
if redis.call('EXISTS', my_session) == 1 then
  return {'taken'}
end
in_any_case() -- who wants to make room needs a session
lift_tokens()
redis.call('HSET', my_session, 'connection', ARGV[2], 'ttl', text(ttl))
redis.call('PEXPIRE', my_session, text(ttl))
redis.call('ZADD', root .. 'sessions', text(now() + ttl * 1000), me)
return {'ok', overdue()}
