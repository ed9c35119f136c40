#!lua flags=allow-oom
-- Gives the lease of a spool up, unless another node has it.
-- KEYS: the lease. ARGV: the boot of who had it.
if redis.call('HGET', KEYS[1], 'boot') == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
