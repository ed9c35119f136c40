#!lua flags=allow-oom
-- Forgets what a node is, unless another process has taken its name; what is kept of it says that it left in order.
-- KEYS: the node's hash, and the one that is kept after its end. ARGV: its boot.
if redis.call('HGET', KEYS[1], 'boot') == ARGV[1] then
  if redis.call('EXISTS', KEYS[2]) == 1 then
    local clock = redis.call('TIME')
    redis.call('HSET', KEYS[2], 'left', '1', 'seen', string.format('%.0f', clock[1] * 1000000 + clock[2]))
  end
  return redis.call('DEL', KEYS[1])
end
return 0
