-- Gives the session its whole time again. Returns another session whose time is over, if there is one:
-- what it left is to be buried.
local ttl = tonumber(ARGV[5])
-- Before anything that needs memory: once a step has written, Redis lets it go on although its
-- memory is full, and a lease must not end because of that.
if redis.call('PEXPIRE', my_session, text(ttl)) == 0 then
  return {'lost'}
end
local refused = enter()
if refused then return refused end

redis.call('ZADD', root .. 'sessions', text(now() + ttl * 1000), me)
return {'ok', overdue()}
