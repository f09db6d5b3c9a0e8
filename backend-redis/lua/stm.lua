-- Transactional memory: what stands under keys, and the namespace's revision.
--
-- A key is a hash: v (the value), create, mod (revisions), version.

local revision_key = root .. 'revision'
-- The revision of the last commit that deleted: what is absent has no revision of its own.
local deleted_key = root .. 'deleted'

-- The revision of the last commit; 0 before the first.
local function revision()
  return tonumber(redis.call('GET', revision_key) or 0)
end

-- By the clock: where Redis has lost its last commits, none of their revisions is given again, which
-- others may still compare with.
local function next_revision(last)
  return math.max(last + 1, now())
end

-- What stands under a key: {value, create, mod, version}, or nil.
local function entry(name)
  local found = redis.call('HMGET', root .. 'data/' .. name, 'v', 'create', 'mod', 'version')
  if not found[1] then
    return nil
  end
  return {found[1], tonumber(found[2]), tonumber(found[3]), tonumber(found[4])}
end

-- Adds to an answer what stands under a key: always four elements.
local function answer_with(answer, found)
  local n = #answer
  answer[n + 1] = found and found[1] or false
  for i = 2, 4 do
    answer[n + i] = found and found[i] or 0
  end
end

-- Byte by byte. Lua's own `<` goes by the server's locale.
local function less(a, b)
  local same, most = 0, math.min(#a, #b)
  while same < most do
    local middle = math.ceil((same + most) / 2)
    if string.sub(a, same + 1, middle) == string.sub(b, same + 1, middle) then
      same = middle
    else
      most = middle - 1
    end
  end
  if same == math.min(#a, #b) then
    return #a < #b
  end
  return string.byte(a, same + 1) < string.byte(b, same + 1)
end

local function below(a, b)
  return a < b
end

-- Whether a comparison holds. `target` is 1 for the value, else where `entry` has the number.
local function holds_for(found, target, relation, wanted)
  local value, lower
  if target == 1 then
    -- No comparison of the value of an absent key holds.
    if not found then
      return false
    end
    value, lower = found[1], less
  else
    value, wanted, lower = found and found[target] or 0, tonumber(wanted), below
  end
  if relation == '=' then
    return value == wanted
  elseif relation == '!' then
    return value ~= wanted
  elseif relation == '<' then
    return lower(value, wanted)
  end
  return lower(wanted, value)
end
