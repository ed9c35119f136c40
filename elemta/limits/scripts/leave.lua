#!lua flags=allow-oom
-- Forgets what a node is, unless another process has taken its name.
-- KEYS: the node's hash. ARGV: its boot.
if redis.call('HGET', KEYS[1], 'boot') == ARGV[1] then
  return redis.call('DEL', KEYS[1])
end
return 0
