#!lua flags=allow-oom
-- Changes the overrides of limits, or looks at them. Also with a full memory: they are few, and people need them.
-- KEYS: the hash of overrides, and their version. Each value is "UNTIL JSON"; UNTIL is milliseconds by this clock.
-- ARGV: what to do, then
--   look
--   set      the most that there may be, a field, for how many milliseconds it holds, its JSON
--   remove   a field
--   restore  a version, then a field, milliseconds and a JSON for each that there was: written where this server
--            knows of none at all, because it has lost its data
-- Returns the time in milliseconds, the version, whether anything was changed (0, 1, or -1: too many), then fields
-- and values.
local call, text = redis.call, function(number) return string.format('%.0f', number) end
local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local hash, version = KEYS[1], KEYS[2]
-- A node that was cut off compares versions when it is back: they go on for a day after the last override.
local DAY = 86400000

local flat, last, ended = call('HGETALL', hash), 0, {}
local count = 0
for i = 1, #flat, 2 do
  local till = tonumber(string.match(flat[i + 1], '^%d+'))
  if not till or till <= now then
    table.insert(ended, flat[i])
  else
    last, count = math.max(last, till), count + 1
  end
end
if #ended > 0 and ARGV[1] ~= 'look' then
  call('HDEL', hash, unpack(ended))
end

local function write(field, life, json)
  local till = now + tonumber(life)
  call('HSET', hash, field, text(till) .. ' ' .. json)
  last = math.max(last, till)
end

local changed = 0
if ARGV[1] == 'set' then
  if count >= tonumber(ARGV[2]) and call('HEXISTS', hash, ARGV[3]) == 0 then
    changed = -1
  else
    write(ARGV[3], ARGV[4], ARGV[5])
    changed = 1
  end
elseif ARGV[1] == 'remove' then
  changed = call('HDEL', hash, ARGV[2])
elseif ARGV[1] == 'restore' and call('EXISTS', hash, version) == 0 then
  for i = 3, #ARGV, 3 do
    write(ARGV[i], ARGV[i + 1], ARGV[i + 2])
  end
  call('SET', version, ARGV[2])
  changed = 1
end
if changed == 1 then
  call('INCR', version)
  call('PEXPIRE', hash, text(math.max(1, last - now)))
  local left = call('PTTL', version)
  call('PEXPIRE', version, text(math.max(left, last - now + DAY, DAY)))
end
return { text(now), call('GET', version) or '0', changed, unpack(call('HGETALL', hash)) }
