-- uses: barrier
-- Leaves a double barrier. ARGV: its path; the token, or '' to take out whatever the nonce has.
-- {ok}, or {gone}: it was taken out before.
local refused = enter()
if refused then return refused end
if before then
  return {'ok'}
end
local path, token = ARGV[5], ARGV[6]
local score = redis.call('ZSCORE', root .. path, me .. ':' .. nonce)
if token ~= '' and not (score and tonumber(score) == tonumber(token)) then
  return {'gone'}
end
freeing['double_barrier'](path, me, nonce)
remember('ok')
return {'ok'}
