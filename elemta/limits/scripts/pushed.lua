#!lua flags=allow-oom
-- The limits that were pushed to the fleet, version after version. Also with a full memory: people need them.
-- KEYS: the hash of versions, and the number of the one in force.
-- ARGV: what to do, then
--   look
--   push     how many versions are kept, the version that this one takes the place of, and its JSON
--   history
--   get      a version
--   restore  a version and its JSON: written where this server knows of none, because it has lost its data
-- Returns the version in force, whether anything was changed (0, 1, or -1: another one is in force by now), and:
-- the JSON of the version that was asked for or is in force; for history that of each version, the last first.
local call = redis.call
local hash, number = KEYS[1], KEYS[2]
local current = tonumber(call('GET', number) or '0')
local changed = 0
if ARGV[1] == 'push' then
  if current ~= tonumber(ARGV[3]) then
    return { current, -1 }
  end
  current, changed = current + 1, 1
  call('HSET', hash, current, ARGV[4])
  call('HDEL', hash, current - tonumber(ARGV[2]))
  call('SET', number, current)
elseif ARGV[1] == 'restore' and call('EXISTS', hash, number) == 0 then
  current, changed = tonumber(ARGV[2]), 1
  call('HSET', hash, current, ARGV[3])
  call('SET', number, current)
end
local answer = { current, changed }
if ARGV[1] == 'history' then
  local fields = call('HKEYS', hash)
  table.sort(fields, function(one, other) return tonumber(one) > tonumber(other) end)
  for _, field in ipairs(fields) do
    table.insert(answer, field)
    table.insert(answer, call('HGET', hash, field))
  end
elseif ARGV[1] == 'get' then
  table.insert(answer, call('HGET', hash, ARGV[2]) or '')
else
  table.insert(answer, call('HGET', hash, current) or '')
end
return answer
