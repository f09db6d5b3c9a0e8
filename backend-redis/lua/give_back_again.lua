-- uses: all
-- Removes what my session gave back before, if it is there again because the server has forgotten that.
-- ARGV: of each the object's path, and the field in the index. {ok, how many there were}.
in_any_case()
in_any_case()
local refused = enter()
if refused then return refused end

local again = 0
for i = 5, #ARGV, 2 do
  local path, field = ARGV[i], ARGV[i + 1]
  local kind = kind_of(path)
  if redis.call('HEXISTS', root .. 'held/' .. me, field) == 1 then
    freeing[kind](path, me, field)
    again = again + 1
  end
  -- Who waited for items may have been given some since.
  if kind == 'queue' and #field == 16 then
    local q = queue.open(path)
    local claims = queue.claims_of(q, me .. ':' .. field, queue.batch)
    for _, claim in ipairs(claims) do
      queue.put_back(q, me, string.sub(claim, #me + 2))
      again = again + 1
    end
    if #claims > 0 then
      queue.serve(path)
    end
  end
end
return {'ok', again}
