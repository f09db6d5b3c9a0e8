-- uses: all
-- Removes a part of what a session left that has ended; `more` if there is more, else `ok` and another
-- one that has. My own session may have ended, too: what it does here is the same whoever does it, and whenever.
local dead = ARGV[5]
in_any_case()
if alive(dead) then
  -- Its time was wrong here: the clock was set, for instance.
  redis.call('ZADD', root .. 'sessions', text(now() + left(dead) * 1000), dead)
  return {'ok', overdue()}
end
local done = end_of(dead)
return {done, done == 'ok' and overdue() or nil}
