-- uses: line, election
-- How my place in the line at `path` stands.
local path = ARGV[5]
local refused = enter()
if refused then return refused end

local member, token, side = my_place(path, nonce)
if not member then
  return {'none'}
end
return answer(path, member, side, token)
