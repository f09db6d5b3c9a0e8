-- Makes every later token one of at least ARGV[5]. It leaves room below the next token for the places that wait now:
-- see `raise_waiters`. {ok}.
local floor, last = tonumber(ARGV[5]), tonumber(redis.call('GET', root .. 'last') or 0)
if last < floor - 1 then
  last = floor - 1 + 2 ^ 20
end
redis.call('SET', root .. 'last', text(math.max(last, now())))
return {'ok'}
