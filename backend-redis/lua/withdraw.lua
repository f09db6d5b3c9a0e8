-- Removes whatever an ask has: a place in line, or a grant. Loaded with the parts of the kind that is asked for.
in_any_case()
in_any_case()
local refused = enter()
if refused then return refused end

local path = redis.call('HGET', root .. 'held/' .. me, nonce)
if path then
  freeing[kind_of(path)](path, me, nonce)
end
return {'ok'}
