-- uses: line, election
-- The state of the election at `path`: the number of its last change; how long until it may change
-- unheard, by the end of the leader's lease; and who leads. Whether my own session lives does not
-- matter.
local path = ARGV[5]
in_any_case()
local more, member, token = leading(path)
if more then
  return {'more'}
elseif not member then
  return {'none', order_of(path, '')}
end
local value = value_of(path, member)
if not value then
  return {'damaged', 'v' .. member}
end
return {'ok', order_of(path, member), left((parts_of(member))), token, value}
