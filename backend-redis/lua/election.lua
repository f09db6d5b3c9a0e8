-- Elections: a line whose places have values. The first live place leads.
--
-- `<path>/values`  hash: `v<member>` what a candidate stands for or the leader said last, `n<member>`
--                  the number of its last proclamation
-- `<path>/order`   `<number> <member>`: the number of the last change that anybody saw, and who led
--                  then. Drawn as tokens are, so it goes on rising when it was forgotten, and need
--                  not be kept for ever. If another leads now, that is a change.

-- How long the number of the last change is kept.
local remembered = 60 * 60 * 1000

local function new_order(path, member)
  lift_tokens() -- whoever observes need not have gone over this connection before
  local order = next_token()
  redis.call('SET', root .. path .. '/order', text(order) .. ' ' .. member, 'PX', remembered)
  return order
end

-- The number of the last change, now that `member` leads, or nobody (an empty one).
local function order_of(path, member)
  local key = root .. path .. '/order'
  local order, before = string.match(redis.call('GET', key) or '', '^(%d+) (.*)$')
  if before ~= member then
    return new_order(path, member)
  end
  redis.call('PEXPIRE', key, remembered)
  return tonumber(order)
end

-- False if somebody has deleted it.
local function value_of(path, member)
  return redis.call('HGET', root .. path .. '/values', 'v' .. member)
end

head_changed['election'] = tell_all

forgotten['election'] = function(path, member)
  redis.call('HDEL', root .. path .. '/values', 'v' .. member, 'n' .. member)
end

-- Taken up: what was proclaimed stands, and proclamations are counted anew.
renamed['election'] = function(path, before, member)
  local value = value_of(path, before)
  if value then
    redis.call('HSET', root .. path .. '/values', 'v' .. member, value)
  end
  forgotten['election'](path, before)
end

-- The place that leads and its token; `more` instead while dead ones are before it.
local function leading(path)
  local first = live_head(path)
  if first == false then
    return 'more'
  end
  return nil, first and first[1], first and tonumber(first[2])
end
