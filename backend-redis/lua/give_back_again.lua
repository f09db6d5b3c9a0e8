-- uses: all
-- Frees what stands in my session's index and belongs to no request of its client: the server has lost a release,
-- a withdrawal or an acknowledgement. ARGV: the fields. {ok, how many there were}.
in_any_case()
in_any_case()
local refused = enter()
if refused then return refused end

local again, queues = 0, {}
for i = 5, #ARGV do
  local field = ARGV[i]
  local path = redis.call('HGET', root .. 'held/' .. me, field)
  local kind = path and kind_of(path)
  if kind == 'queue' and #field > 16 then
    -- This delivery alone: `freeing` gives back all that the session has of the queue.
    local q = queue.open(path)
    if redis.call('ZSCORE', q.in_flight, me .. ':' .. field) then
      queue.put_back(q, me, field)
      queues[path] = true
    else
      unnote(me, field)
    end
    again = again + 1
  elseif kind and kind ~= 'barrier' then -- `repeat` ends holds
    freeing[kind](path, me, field)
    again = again + 1
  end
end
for path in pairs(queues) do
  queue.serve(path)
end
return {'ok', again}
