-- uses: barrier
-- Takes back what a nonce held, also for good. ARGV: the barrier's path.
in_any_case()
local refused = enter()
if refused and refused[1] ~= 'lost' then
  return refused
end
-- A hold for good outlives its session: nobody else will take it back.
local path = ARGV[5]
local hold = find_hold(path)
if hold and hold.session == me and hold.nonce == nonce then
  end_hold(path, hold)
end
return {'ok'}
