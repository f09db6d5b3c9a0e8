-- uses: line, election, interop
-- How my place in the line at `path` stands. One that was not told to look may find that a place was
-- taken out behind everybody's back: then it tells the others.
local path, untold = ARGV[5], ARGV[6] == 'untold'
local refused = enter()
if refused then return refused end

local member, token, side = my_place(path, nonce)
if not member then
  return {'none'}
end
local found = answer(path, member, side, token)
if untold and found[1] == 'held' then
  taken_silently(path)
end
return found
