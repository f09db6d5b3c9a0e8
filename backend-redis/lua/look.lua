-- uses: line, election, interop
-- How my place in the line at `path` stands. One that was not told to look may find that a place was
-- taken out behind everybody's back: then it tells the others.
local path, untold = ARGV[5], ARGV[6] == 'untold'
in_any_case() -- the place is there already
local refused = enter()
if refused then return refused end

local member, token, side = my_place(path, nonce)
if not member then
  return {'none'}
end
local found = answer(path, member, side, token)
if found[1] == 'held' then
  local rank = redis.call('ZRANK', root .. path, member)
  if side == 'r' and was_telling(path, member) then
    hand_on(path, rank + 1, 'w')
  elseif untold and side == 'r' then
    freed_silently(path, token, rank)
  elseif untold then
    taken_silently(path, rank)
  end
end
return found
