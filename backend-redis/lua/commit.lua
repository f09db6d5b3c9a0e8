-- One transaction. ARGV, each list with its length before it:
--   the fence: '' for none, else kind, path, member, token of the guard;
--   comparisons: key, target, relation, wanted;
--   the operations of each branch: what, key, and for a put the value.
-- {done, revision, 1 or 0, value, create, mod, version, ...}: four for each get of the branch.
-- {fence}: what was to be held is not. {again}: done before; its answer went with that.
--
-- Everything is looked at before anything is written: an error of Redis in the middle would leave
-- what was written before it.

local at = 4
local function argument()
  at = at + 1
  return ARGV[at]
end

-- What this transaction has found, and left, under keys.
local entries, known = {}, {}
local function find(key)
  if not known[key] then
    entries[key], known[key] = entry(key), true
  end
  return entries[key]
end

local function fence_holds()
  local kind = argument()
  if kind == '' then
    return true
  end
  local path, member, token = argument(), argument(), tonumber(argument())
  local holding = holds[kind]
  return holding and holding(path, member, token)
end

local function compare()
  local succeeded = true
  for _ = 1, tonumber(argument()) do
    local key, target, relation, wanted = argument(), tonumber(argument()), argument(), argument()
    succeeded = succeeded and holds_for(find(key), target, relation, wanted)
  end
  return succeeded
end

-- The operations that are to be done, and how many of them put and delete. Passes over the other branch.
local function choose(succeeded)
  local branch, puts, deletes = {}, 0, 0
  for turn = 1, 2 do
    for _ = 1, tonumber(argument()) do
      local what, key = argument(), argument()
      local value = what == 'put' and argument()
      if (turn == 1) == succeeded then
        branch[#branch + 1] = {what, key, value}
        puts = puts + (value and 1 or 0)
        deletes = deletes + (what == 'delete' and 1 or 0)
        if what ~= 'delete' then
          find(key)
        end
      end
    end
  end
  return branch, puts, deletes
end

local function put(key, value, when)
  local found = entries[key]
  local create, version = found and found[2] or when, found and found[4] + 1 or 1
  redis.call('HSET', root .. 'data/' .. key, 'v', value, 'create', text(create), 'mod', text(when),
    'version', text(version))
  entries[key] = {value, create, when, version}
end

local function apply(branch, when, answer)
  for _, op in ipairs(branch) do
    local what, key = op[1], op[2]
    if what == 'get' then
      answer_with(answer, entries[key])
    elseif what == 'put' then
      put(key, op[3], when)
    else
      redis.call('DEL', root .. 'data/' .. key)
      entries[key], known[key] = nil, true
    end
  end
end

local function commit()
  local refused = enter()
  if refused then
    return refused
  end
  if before then
    return {'again'}
  end
  if not fence_holds() then
    return {'fence'}
  end
  local succeeded = compare()
  local branch, puts, deletes = choose(succeeded)
  local when = revision()
  local answer = {'done', when, succeeded and 1 or 0}
  -- What may write has a slot, also if this branch does not.
  if ARGV[3] == '' then
    apply(branch, when, answer)
    return answer
  end
  when = next_revision(when)
  answer[2] = when
  local function mark()
    redis.call('SET', revision_key, text(when))
    if deletes > 0 then
      redis.call('SET', deleted_key, text(when))
    end
    remember(text(when) .. ' ' .. answer[3])
  end
  -- First, so that a Redis that has no memory left refuses before anything is done. What only
  -- deletes it takes, unless it was asked for memory before.
  if puts > 0 then
    mark()
    apply(branch, when, answer)
  else
    apply(branch, when, answer)
    mark()
  end
  return answer
end
