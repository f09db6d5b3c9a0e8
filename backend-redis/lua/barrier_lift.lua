-- uses: barrier
-- Ends the hold that is met, whoever's it is. ARGV: the barrier's path.
-- {ok, 1 or 0}: whether there was one.
in_any_case()
local refused = enter()
if refused then return refused end
if before then
  return {'ok', tonumber(before)}
end
local path = ARGV[5]
local hold = find_hold(path)
if hold then
  end_hold(path, hold)
end
local lifted = hold and 1 or 0
remember(text(lifted))
return {'ok', lifted}
