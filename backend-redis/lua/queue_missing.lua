-- uses: queue
-- Which deliveries are not in force. ARGV: path, place and token of each. {ok, number, ...}: the
-- numbers of those, from 0.
local refused = enter()
if refused then
  return refused
end
local missing = {'ok'}
for at = 5, #ARGV, 3 do
  if not queue.has(queue.open(ARGV[at]), me, ARGV[at + 1], ARGV[at + 2]) then
    missing[#missing + 1] = (at - 5) / 3
  end
end
return missing
