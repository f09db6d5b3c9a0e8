-- Gives the session its whole time again. ARGV: the TTL, and how many renewals were acknowledged to its client.
-- {ok, another session whose time is over, if there is one, of how many renewals the server knows}.
local ttl = tonumber(ARGV[5])
-- Before anything that needs memory: once a step has written, Redis lets it go on although its
-- memory is full, and a lease must not end because of that.
if redis.call('PEXPIRE', my_session, text(ttl)) == 0 then
  return {'lost'}
end
local refused = enter()
if refused then return refused end

redis.call('ZADD', root .. 'sessions', text(now() + ttl * 1000), me)
-- A server that knows of fewer has lost a part of its history, perhaps over this very connection.
local known = tonumber(redis.call('HGET', my_session, 'renewals') or 0)
redis.call('HSET', my_session, 'renewals', text(math.max(tonumber(ARGV[6]), known) + 1))
return {'ok', overdue(), known}
