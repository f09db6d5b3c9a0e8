-- Comes before everything else in the script of a release: nobody else is in the line (see `take_alone.lua`).
do
  local root, session, line = KEYS[1], ARGV[1], KEYS[1] .. ARGV[5]
  local record = root .. 'session/' .. session
  local facts = redis.call('HMGET', record, 'connection', 'detached')
  if facts[1] == ARGV[2] and not facts[2] then
    local places = redis.call('ZRANGE', line, 0, 1)
    -- One place, and that is this ask's: a nonce has one token for as long as its place stands.
    if #places == 1 and places[1] == session .. ':' .. ARGV[4] .. ':w' then
      redis.call('DEL', line)
      redis.call('HDEL', root .. 'held/' .. session, ARGV[4])
      redis.call('HSET', record, 'd' .. ARGV[3], ARGV[4] .. ' ok')
      return {'ok'}
    end
  end
end
