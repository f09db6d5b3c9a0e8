-- uses: barrier
-- What holds a barrier. ARGV: its path.
-- {none}; {held, token, for how many ms its lease lasts}, or -1 for good.
in_any_case()
local refused = enter()
if refused then return refused end
local hold = find_hold(ARGV[5])
if not hold then
  return {'none'}
end
return {'held', hold.token, hold.bound and left(hold.session) or -1}
