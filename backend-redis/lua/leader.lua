-- uses: line, election
-- Who leads the election at `path`.
local path = ARGV[5]
local more, member, token = leading(path)
if more then
  return {'more'}
elseif not member then
  return {'none'}
end
local value = value_of(path, member)
if not value then
  return {'damaged', 'v' .. member}
end
return {'ok', token, value}
