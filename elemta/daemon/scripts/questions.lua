#!lua flags=allow-oom
-- The questions that other nodes ask one node. Also with a full memory: they are few, short, and gone in seconds.
-- KEYS: the hash of the node's questions. ARGV: what to do, then
--   ask   the most that may wait, for how many milliseconds they are good, the id of the question, its JSON
--   take  nothing
-- Returns whether it was written (0 or 1), or ids and questions, which are removed.
local call = redis.call
if ARGV[1] == 'take' then
  local flat = call('HGETALL', KEYS[1])
  if #flat > 0 then
    call('DEL', KEYS[1])
  end
  return flat
end
if #call('HKEYS', KEYS[1]) >= tonumber(ARGV[2]) then
  return 0
end
call('HSET', KEYS[1], ARGV[4], ARGV[5])
call('PEXPIRE', KEYS[1], ARGV[3])
return 1
