-- What came of the commit with this slot and nonce: {committed, revision, 1 or 0}, or {aborted}.
--
-- Aborted is for good: what is on its way is behind this step on its connection, or on an older
-- connection, which this step has shut out.
in_any_case()
local refused = enter()
if refused then return refused end
if not before then
  return {'aborted'}
end
local revision, succeeded = string.match(before, '^(%d+) (%d)$')
return {'committed', tonumber(revision), tonumber(succeeded)}
