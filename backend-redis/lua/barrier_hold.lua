-- uses: barrier
-- Holds a barrier. ARGV: its path, and 1 if it ends with the session.
-- {ok}, once for each nonce; {conflict}.
local refused = enter()
if refused then return refused end
if before then
  return {'ok'}
end
local path, bound = ARGV[5], ARGV[6]
if find_hold(path) then
  return {'conflict'}
end
redis.call('HSET', root .. path, 'session', me, 'nonce', nonce, 'bound', bound, 'token',
  text(next_token()))
if bound == '1' then
  note(nonce, path)
end
remember('ok')
return {'ok'}
