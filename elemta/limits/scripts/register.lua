#!lua flags=allow-oom
-- Writes down something that is good for a while, and drops what is so no longer.
-- KEYS: a sorted set by the time of writing. ARGV: for how many milliseconds it is good, and what.
-- Returns the time in microseconds, and all that is good now.
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
redis.call('ZADD', KEYS[1], string.format('%.0f', now), ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', now - ARGV[1] * 1000))
redis.call('PEXPIRE', KEYS[1], ARGV[1])
return { string.format('%.0f', now), unpack(redis.call('ZRANGE', KEYS[1], 0, 999)) }
