-- uses: barrier
-- Looks at a double barrier from inside or outside. ARGV: its path; the token of one who has left,
-- or '' for one who waits to be let in.
-- Waiting: {held, token}, {wait}, {gone}. Left: {none} once all have; else {wait, ms}.
in_any_case()
local refused = enter()
if refused then return refused end
local path, mine = ARGV[5], tonumber(ARGV[6])
local room = find_room(path)
if not mine then
  local token = redis.call('ZSCORE', root .. path, me .. ':' .. nonce)
  if not token then
    return {'gone'}
  elseif room.closed then
    return {'held', tonumber(token)}
  end
  return {'wait'}
end
-- Who came before the first one of this room was in an earlier one.
if not room or room.first > mine then
  return {'none'}
end
local ends
if redis.call('ZCARD', root .. path) > room_in_one_look then
  ends = first_alive(path)
  ends = ends and math.min(ends, slow_look)
else
  ends = select(2, bury_in_room(path))
  if not ends then
    first_alive(path)
  end
end
if not ends then
  return {'none'}
end
return {'wait', ends}
