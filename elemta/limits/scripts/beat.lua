#!lua flags=allow-oom
-- Writes down what a node is. Also with a full memory: it is little, and people will want to look.
-- KEYS: the node's hash. ARGV: how long it is good for in milliseconds, its boot, then fields and values.
-- Returns the boot of the process that wrote there before, or nothing.
local clock = redis.call('TIME')
local before = redis.call('HGET', KEYS[1], 'boot')
local seen = string.format('%.0f', clock[1] * 1000000 + clock[2])
redis.call('HSET', KEYS[1], 'boot', ARGV[2], 'seen', seen, unpack(ARGV, 3))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return before
