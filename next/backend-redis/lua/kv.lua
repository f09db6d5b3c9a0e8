-- The steps of transactional memory. Costs in redis.calls; n keys, w of them written, k compared or read by the commit:
--
--   read      3 + n                                                                            O(n), with the bytes of the values
--   commit    6 + k + 2 w, with a fence 1 more                                                 O(k + w)
--   resolve   3                                                                                O(1)
--
-- An entry in an answer is four fields: created, modified, version, value; the first is 0 for an absent key.

local function add_entry(answer, found, without_value)
  local n = #answer
  if found then
    answer[n + 1], answer[n + 2], answer[n + 3] = found.created, found.modified, found.version
    answer[n + 4] = without_value and '' or found.value
  else
    answer[n + 1], answer[n + 2], answer[n + 3], answer[n + 4] = 0, 0, 0, ''
  end
end

-- ARGV: 6 the most bytes of values, then for each key: its path, and the revision whose value the client knows, `-` to get no
-- value at all, or ''.
-- ok, revision, revision of the last removal, ms until the first lease of a key ends or '', then an entry for each key. There
-- may be fewer entries than keys, but for the first: the values of more would be too long.
local function read()
  local refused = enter(false)
  if refused then return refused end
  local answer, bytes, first_end = {'ok', 0, 0, ''}, tonumber(ARGV[6]), nil
  for i = 7, #ARGV, 2 do
    local found, known = read_key(ARGV[i]), ARGV[i + 1]
    local without_value = found and (known == '-' or known == found.modified)
    if found and not without_value then
      bytes = bytes - #found.value
      if bytes < 0 and i > 7 then break end
    end
    if found and found.owner ~= '-' then
      first_end = math.min(first_end or math.huge, left(found.owner))
    end
    add_entry(answer, found, without_value)
  end
  answer[2], answer[3] = revisions()
  answer[4] = first_end and int(math.ceil(first_end / 1000)) or ''
  return answer
end

-- Compares byte by byte: `<` of Lua depends on the server's locale.
local function is_less(a, b)
  local from, to = 1, math.min(#a, #b)
  if string.sub(a, 1, to) == string.sub(b, 1, to) then
    return #a < #b
  end
  while from < to do
    local middle = math.floor((from + to) / 2)
    if string.sub(a, from, middle) == string.sub(b, from, middle) then
      from = middle + 1
    else
      to = middle
    end
  end
  return string.byte(a, from) < string.byte(b, from)
end

local function relates(found, relation, wanted, less)
  if relation == '=' then
    return found == wanted
  elseif relation == '!' then
    return found ~= wanted
  elseif relation == '<' then
    return less(found, wanted)
  end
  return less(wanted, found)
end

local function number_is_less(a, b)
  return tonumber(a) < tonumber(b)
end

-- No comparison of the value of an absent key holds. Its numbers are 0.
local function compare_holds(found, target, relation, wanted)
  if target == 'value' then
    return found ~= nil and relates(found.value, relation, wanted, is_less)
  end
  return relates(found and found[target] or '0', relation, wanted, number_is_less)
end

local at = 5
local function argument()
  at = at + 1
  return ARGV[at]
end

-- The keys as this commit has found and left them; false for an absent one.
local known = {}
local function find(path)
  if known[path] == nil then
    known[path] = read_key(path) or false
  end
  return known[path] or nil
end

-- Whether the guard holds. The index has the token of a holding; a break by an operator overwrites it. With a shared name, the
-- key of that name counts too.
local function fence_holds()
  local path = argument()
  if path == '' then
    return true
  end
  local its_nonce, wanted, alone, shared_key = argument(), argument(), argument(), argument()
  local entry = redis.call('HGET', held, its_nonce)
  local claims, queue_path = string.match(entry or '', '^q (%S+) (.*)$')
  if claims then
    return queue_path == path and string.find(',' .. claims, ',' .. wanted .. '@', 1, true) ~= nil
  end
  local token, mode, its_path = string.match(entry or '', '^([%d-]+) (%S+) (.*)$')
  if token ~= wanted or its_path ~= path or (alone == '1' and mode == 's') then
    return false
  end
  return shared_key == '' or redis.pcall('GET', shared_key) == root .. me .. ':' .. its_nonce
end

-- Reads the operations of both branches, and returns those to be carried out.
local function choose(succeeded)
  local branch = {}
  for number = 1, 2 do
    for _ = 1, tonumber(argument()) do
      local what, path = argument(), argument()
      local value = (what == 'put' or what == 'lease') and argument() or nil
      if (number == 1) == succeeded then
        branch[#branch + 1] = {what = what, path = path, value = value}
        find(path)
      end
    end
  end
  return branch
end

local function put(operation, revision)
  local path, found = operation.path, known[operation.path]
  local written = {
    created = found and found.created or revision, modified = revision, version = found and int(found.version + 1) or '1',
    owner = operation.what == 'lease' and me or '-', value = operation.value,
  }
  bind(path, found and found.owner or '-', written.owner)
  local head = written.created .. ' ' .. revision .. ' ' .. written.version .. ' ' .. written.owner
  redis.call('SET', root .. path, head .. '\n' .. written.value)
  known[path] = written
  tell_observers(path)
end

-- ARGV from 6 on: `1` if it may put; the path of the guard or '', and then its nonce, token, `1` if it has to hold alone,
-- and the shared key or ''; the number of comparisons, and for each: path, target, relation, wanted; for each of the two
-- branches the number of operations, and for each: what, path, and the value of a put or lease.
-- done, revision, 1 or 0, then an entry for each `get` | fence | again
--
-- Everything is read before anything is written, because an error in the middle would leave half of a commit.
local function commit()
  local refused = enter(true)
  if refused then return refused end
  if before then
    return {before == 'fence' and 'fence' or before == 'aborted' and 'late' or 'again'}
  end
  if argument() == '0' then
    allow_full_memory()
  end
  if not fence_holds() then
    remember('fence')
    return {'fence'}
  end
  local succeeded = true
  for _ = 1, tonumber(argument()) do
    local path, target, relation, wanted = argument(), argument(), argument(), argument()
    succeeded = compare_holds(find(path), target, relation, wanted) and succeeded
  end
  local branch = choose(succeeded)
  local last, removed = revisions()
  local writes = false
  for _, operation in ipairs(branch) do
    writes = writes or operation.what ~= 'get'
  end
  local revision = writes and next_revision(last) or last
  local answer = {'done', revision, succeeded and 1 or 0}
  -- The first write: Redis refuses it, and with it the whole commit, if its memory is full.
  remember(revision .. ' ' .. answer[3])
  for _, operation in ipairs(branch) do
    local path, found = operation.path, known[operation.path]
    if operation.what == 'get' then
      add_entry(answer, found or nil)
    elseif operation.what ~= 'delete' then
      put(operation, revision)
    elseif found then
      remove_key(path, found.owner)
      known[path], removed = false, revision
    end
  end
  if writes then
    set_revisions(revision, removed)
  end
  return answer
end

-- Finds out what became of the commit with this slot and nonce, and keeps it from happening if it has not.
-- committed, revision, 1 or 0 | aborted
local function resolve()
  allow_full_memory()
  local refused = enter(false)
  if refused then return refused end
  local last = redis.call('HGET', record, 'd' .. slot)
  local number, revision, succeeded = string.match(last or '', '^commit (%d+) (%d+) (%d)$')
  if number == nonce then
    return {'committed', revision, succeeded}
  end
  redis.call('HSET', record, 'd' .. slot, 'commit ' .. nonce .. ' aborted')
  return {'aborted'}
end

local steps = {read = read, commit = commit, resolve = resolve}
return steps[operation]()
