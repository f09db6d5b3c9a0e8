-- uses: line, election, interop
-- Gives my place in the line at `path` back. `gone` if it does not hold under `token`; also then nothing of it
-- stays: after a failover that lost the newest writes, a place that held may stand behind another one.
local path, token = ARGV[5], tonumber(ARGV[6])
in_any_case()
local refused = enter()
if refused then return refused end
if before then return {before} end

local member, mine, side = my_place(path, nonce)
local held = member and mine == token and standing(path, member, side, token) and keeps(path, member)
free_place(path, me, nonce)
if not held then
  return {'gone'}
end
remember('ok')
return {'ok'}
