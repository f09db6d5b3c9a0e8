-- uses: line, election, interop
-- Takes up what my session holds at `path` on `side` under `token`: it becomes that of this ask.
-- {held, token, the field of the index that it had before}; {none}.
local path, side, token = ARGV[5], ARGV[6], tonumber(ARGV[7])
local refused = enter()
if refused then return refused end

for _, member in ipairs(redis.call('ZRANGEBYSCORE', root .. path, text(token), text(token))) do
  local session, field, its_side = parts_of(member)
  if session == me and its_side == side and standing(path, member, side, token)
    and keeps(path, member) then
    if field ~= nonce then
      rename_place(path, member, member_of(me, nonce, side), token)
      unnote(me, field)
      note(nonce, path)
    end
    return {'held', token, field}
  end
end
return {'none'}
