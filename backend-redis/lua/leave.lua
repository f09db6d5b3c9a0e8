-- uses: line, election, interop
-- Gives my place in the line at `path` back, if it holds under `token`.
local path, token = ARGV[5], tonumber(ARGV[6])
in_any_case()
local refused = enter()
if refused then return refused end
if before then return {before} end

local member, mine, side = my_place(path, nonce)
if not member then
  free_place(path, me, nonce)
end
if mine ~= token or not standing(path, member, side, token) then
  return {'gone'}
elseif not keeps(path, member) then
  free_place(path, me, nonce)
  return {'gone'}
end
remove_place(path, member)
unnote(me, nonce)
remember('ok')
return {'ok'}
