#!lua flags=allow-oom
-- Writes down what a node is. Also with a full memory: it is little, and people will want to look.
-- KEYS: the node's hash, and the one that is kept after its end. ARGV: for how many milliseconds each is good, the
-- node's boot, then fields and values.
-- Returns the boot of the process that wrote there before, or nothing.
local clock = redis.call('TIME')
local before = redis.call('HGET', KEYS[1], 'boot')
local seen = string.format('%.0f', clock[1] * 1000000 + clock[2])
for place, key in ipairs(KEYS) do
  redis.call('HSET', key, 'boot', ARGV[3], 'seen', seen, unpack(ARGV, 4))
  redis.call('PEXPIRE', key, ARGV[place])
end
redis.call('HDEL', KEYS[2], 'left')
return before
