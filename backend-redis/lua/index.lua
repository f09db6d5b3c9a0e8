-- Some entries of the session's index. ARGV: the cursor, `0` at first.
-- {ok, the next cursor (`0` after the last entries), field, ...}.
in_any_case()
local refused = enter()
if refused then return refused end

local found = redis.call('HSCAN', root .. 'held/' .. me, ARGV[5], 'COUNT', 250)
local answer = {'ok', found[1]}
for i = 1, #found[2], 2 do
  answer[#answer + 1] = found[2][i]
end
return answer
