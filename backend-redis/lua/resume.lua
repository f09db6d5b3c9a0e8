-- Uses up the record that a detached session left. Replies with its TTL, and the number above which
-- the connections of its new owner have to be: far above what the old owner may still reach.
local facts = redis.call('HMGET', my_session, 'connection', 'detached', 'ttl', 'resumed')
local known, ttl = tonumber(facts[1]), tonumber(facts[3])
if not known or not ttl then
  return {'lost'}
end
if facts[2] then
  known = math.max(known, tonumber(ARGV[2])) + 1000000
  redis.call('HDEL', my_session, 'detached')
  redis.call('HSET', my_session, 'connection', text(known), 'resumed', nonce)
elseif facts[4] ~= nonce then
  return {'conflict'}
end
return {'ok', ttl, known}
