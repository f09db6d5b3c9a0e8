-- uses: barrier
-- Leaves a double barrier. ARGV: its path, and the token.
-- {ok}, or {gone}: it was taken out before.
in_any_case()
local refused = enter()
if refused then return refused end
if before then
  return {'ok'}
end
local path, token = ARGV[5], tonumber(ARGV[6])
local score = redis.call('ZSCORE', root .. path, me .. ':' .. nonce)
-- Nothing of it stays, whatever the answer: after a failover the token may be another one.
freeing['double_barrier'](path, me, nonce)
if not score or tonumber(score) ~= token then
  return {'gone'}
end
remember('ok')
return {'ok'}
