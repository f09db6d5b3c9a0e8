-- uses: barrier
-- Ends the hold that is met, whoever's it is. ARGV: the barrier's path.
-- {ok, the token of the hold that was ended, 0 if there was none}.
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
local lifted = hold and hold.token or 0
remember(text(lifted))
return {'ok', lifted}
