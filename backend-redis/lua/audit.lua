-- uses: all
-- Which of these holdings are gone: for each its path, what its key says behind that, and its token. It
-- was an operator who took them, and told nobody.
local refused = enter()
if refused then return refused end

local gone = {'ok'}
for i = 5, #ARGV, 3 do
  local path = ARGV[i]
  local holding = holds[kind_of(path)]
  if holding and not holding(path, ARGV[i + 1], tonumber(ARGV[i + 2])) then
    gone[#gone + 1] = (i - 5) / 3
    if is_line(path) then
      taken_silently(path)
    end
  end
end
return gone
