-- Some of the namespace's sessions. ARGV: the cursor, `0` at first. {ok, the next cursor (`0` after the last), id, ...}.
local found = redis.call('ZSCAN', root .. 'sessions', ARGV[5], 'COUNT', 100)
local answer = {'ok', found[1]}
for i = 1, #found[2], 2 do
  answer[#answer + 1] = found[2][i]
end
return answer
