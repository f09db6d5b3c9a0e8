-- uses: barrier
-- Enters a double barrier. ARGV: its path, and the count.
-- {held, token}: all are there, and the others are told; {wait}; {count, another one}, {full}.
local refused = enter()
if refused then return refused end
local path, count = ARGV[5], tonumber(ARGV[6])
local member = me .. ':' .. nonce
local token = redis.call('ZSCORE', root .. path, member)
local room = find_room(path)
if token then
  if room.closed then
    return {'held', tonumber(token)}
  end
  return {'wait'}
end
if room and (room.closed or room.count ~= count) and not first_alive(path) then
  room = nil
end
if room and room.count ~= count then
  return {'count', room.count}
elseif room and room.closed then
  return {'full'}
end
token = next_token()
redis.call('ZADD', root .. path, text(token), member)
note(nonce, path)
if not room then
  redis.call('HSET', root .. path .. '/room', 'count', count, 'first', text(token))
end
if redis.call('ZCARD', root .. path) < count or bury_in_room(path) < count then
  return {'wait'}
end
redis.call('HSET', root .. path .. '/room', 'closed', 1)
local members = redis.call('ZRANGE', root .. path, 0, -1, 'WITHSCORES')
for i = 1, #members, 2 do
  local session, its_nonce = string.match(members[i], '^(.*):(%x+)$')
  if members[i] ~= member then
    tell(session, its_nonce, tonumber(members[i + 1]))
  end
end
return {'held', token}
