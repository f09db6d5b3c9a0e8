-- uses: stm
-- Some keys at one instant. ARGV: the most bytes of values; the keys.
-- {ok, revision, revision of the last deletion, value, create, mod, version, ...}: of as many of the keys as fit, one
-- at least.
in_any_case()
local refused = enter()
if refused then return refused end
local answer, room = {'ok', revision(), tonumber(redis.call('GET', deleted_key) or 0)}, tonumber(ARGV[5])
for i = 6, #ARGV do
  local found = entry(ARGV[i])
  room = room - (found and #found[1] or 0)
  if room < 0 and i > 6 then
    break
  end
  answer_with(answer, found)
end
return answer
