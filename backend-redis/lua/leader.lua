-- uses: line, election
-- Who leads the election at `path`.
local path = ARGV[5]
local more, member, token = leading(path)
if more then
  return {'more'}
elseif not member then
  return {'none'}
end
return {'ok', token, value_of(path, member)}
