-- uses: all
-- Ends the session, and removes a part of what it has; `more` if there is more, else `ok` and another session
-- whose time is over, if there is one.
local facts = redis.call('HGET', my_session, 'connection')
if facts and tonumber(facts) > tonumber(ARGV[2]) then
  return {'stale'} -- it was resumed elsewhere
end
redis.call('DEL', my_session)
living[me] = false
local done = end_of(me)
return {done, done == 'ok' and overdue() or nil}
