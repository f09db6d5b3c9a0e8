-- uses: line, interop
-- Takes a place in the line at `path` on `side`, at its end; once for each nonce.
local path, side, only_if_free = ARGV[5], ARGV[6], ARGV[7] == 'try'
local refused = enter()
if refused then return refused end

local member = member_of(me, nonce, side)
local token = redis.call('ZSCORE', root .. path, member)
if token then
  return answer(path, member, side, tonumber(token))
end
local no = only_if_free and turned_away(path, side)
if no then
  return no
end
token = next_token()
add_place(path, member, side, token)
note(nonce, path)
return answer(path, member, side, token)
