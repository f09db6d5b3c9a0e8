-- uses: all
-- Which of these holdings are gone: for each its path, what its key says behind that, and its token. It
-- was an operator who took them, and told nobody.
in_any_case()
local refused = enter()
if refused then return refused end

local gone = {'ok'}
for i = 5, #ARGV, 3 do
  local path, who, token = ARGV[i], ARGV[i + 1], tonumber(ARGV[i + 2])
  local in_line = is_line(path)
  -- A place that held does so for as long as it is there.
  local holding = in_line and has_place or holds[kind_of(path)]
  if holding and not holding(path, who, token) then
    gone[#gone + 1] = (i - 5) / 3
    if in_line then
      if keeping[kind_of(path)] then
        free_place(path, string.match(who, '^([^:]+):(.*)$')) -- it may be the key alone that is gone
      end
      taken_silently(path, 0)
    end
  end
end
return gone
