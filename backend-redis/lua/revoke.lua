-- uses: all
-- Ends the session, and removes a part of what it has; `more` if there is more.
local facts = redis.call('HGET', my_session, 'connection')
if facts and tonumber(facts) > tonumber(ARGV[2]) then
  return {'stale'} -- it was resumed elsewhere
end
redis.call('DEL', my_session)
living[me] = false
return {end_of(me)}
