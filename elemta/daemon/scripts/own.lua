#!lua flags=allow-oom
-- Takes the lease of a spool, or renews it, unless another node has it. Also with a full memory: it is little.
-- A claim under the same lock (its place) as the one before follows on it: that lock let it pass.
-- KEYS: the lease. ARGV: how long it is good for in milliseconds; the boot, place, node and host of who asks.
-- Returns nothing, or the boot, place, node and host of who has it.
local owner = redis.call('HMGET', KEYS[1], 'boot', 'place', 'node', 'host')
if owner[1] and owner[1] ~= ARGV[2] and (ARGV[3] == '' or owner[2] ~= ARGV[3]) then
  return owner
end
redis.call('HSET', KEYS[1], 'boot', ARGV[2], 'place', ARGV[3], 'node', ARGV[4], 'host', ARGV[5])
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return {}
