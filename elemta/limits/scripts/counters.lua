-- What every script knows. A key is a sorted set: the exact log, one member for each charge, or the leases.
-- Beside it, under the same name with a "~", is a hash of sub-buckets, where a limit has bounds above 128:
--   s      the windows that it counts for, in microseconds
--   e      the time from which on it has counted; slots are counted from there
--   x      the window that the exact log beside it is kept for
--   t1 ... what was charged in the first window's slots together, o1 ... the oldest of these slots,
--   u1 ... when a node last asked for this window
--   and one integer field for each slot: (slot - first slot) * STRIDE + (number of the window - 1)
-- Nodes whose limits have other numbers, before and after a reload, count in the same two keys: who charges
-- writes to all there is, and who finds what he counts in missing makes it from the other.
-- The hash's name is made from the declared key's: both have the same hash tag.
local call, floor, ceil, max, min = redis.call, math.floor, math.ceil, math.max, math.min
local insert, sort = table.insert, table.sort

local LOG_LIMIT, STRIDE, SUB_BUCKETS = 128, 32, 60
local LEASE = 30000000

local clock = call('TIME')
local NOW = clock[1] * 1000000 + clock[2]

-- Numbers are written out here: servers differ in how they do it, and some say 1e+09.
local function text(number)
  return string.format('%.0f', number)
end

local function numbers(words)
  local found, count = {}, 0
  for word in string.gmatch(words, '%S+') do
    count = count + 1
    found[count] = tonumber(word)
  end
  return found
end

-- A key of leases ends with the last of them. One that was a log before its limit counted open connections
-- ends later: a node that still counts in it must find its charges.
local function keep_leases(key)
  if call('PTTL', key) < LEASE / 1000 then
    call('PEXPIRE', key, LEASE / 1000)
  end
end

local function grain_of(window)
  return max(1, ceil(window / SUB_BUCKETS))
end

-- A limit's spec: binding, leases (-1: none), number of exact bounds, these as limit and window,
-- number of bounds in sub-buckets, these as limit and window, ordered by window.
local function read_terms(words)
  local n = numbers(words)
  local spec = { binding = n[1] == 1, leases = n[2], log = {}, buckets = {}, windows = {}, span = 0 }
  local at = 4
  for _ = 1, n[3] do
    insert(spec.log, { limit = n[at], window = n[at + 1] })
    spec.span = max(spec.span, n[at + 1])
    at = at + 2
  end
  local count = n[at]
  at = at + 1
  for _ = 1, count do
    local window = n[at + 1]
    if spec.windows[#spec.windows] ~= window then
      insert(spec.windows, window)
    end
    insert(spec.buckets, { limit = n[at], window = window, place = #spec.windows })
    at = at + 2
  end
  local heads, fields = {}, { 's', 'e', 'x' }
  for place, window in ipairs(spec.windows) do
    heads[place] = text(window)
    insert(fields, 't' .. place)
    insert(fields, 'o' .. place)
  end
  spec.schema, spec.fields = table.concat(heads, ' '), fields
  return spec
end

-- The members of one charge: as many as its amount.
local function members(name, amount)
  local names = { name }
  for extra = 1, min(amount, LOG_LIMIT) - 1 do
    names[extra + 1] = name .. ':' .. extra
  end
  return names
end

-- A series: times on the grid of its window, ascending once pruned, and the amount at each.
local function series_of(window, grain)
  return { window = window, grain = grain, times = {}, amounts = {}, total = 0 }
end

local function put(series, time, amount)
  local slot = ceil(time / series.grain) * series.grain
  local held = series.amounts[slot]
  if not held then
    insert(series.times, slot)
  end
  series.amounts[slot] = (held or 0) + amount
  series.total = series.total + amount
end

local function prune(series)
  sort(series.times)
  local kept, gone = {}, {}
  for _, time in ipairs(series.times) do
    if time + series.window > NOW then
      kept[#kept + 1] = time
    else
      gone[#gone + 1] = time
      series.total = series.total - series.amounts[time]
      series.amounts[time] = nil
    end
  end
  series.times = kept
  return gone
end

local function carried(source, window, grain)
  local series = series_of(window, grain)
  for _, time in ipairs(source.times) do
    put(series, time, source.amounts[time])
  end
  prune(series)
  return series
end

-- How long until `amount` more would pass; 0 now, -1 never.
local function wait_in(series, limit, amount)
  if amount > limit then
    return -1
  end
  local excess = series.total + amount - limit
  if excess <= 0 then
    return 0
  end
  for _, time in ipairs(series.times) do
    excess = excess - series.amounts[time]
    if excess <= 0 then
      return time + series.window - NOW
    end
  end
  return redis.error_reply('a total that is no sum')
end

-- The longer of two waits; never is longest.
local function longer(one, other)
  if one < 0 or other < 0 then
    return -1
  end
  return max(one, other)
end

local function read_log(key, window)
  local log = series_of(window, 1)
  local flat = call('ZRANGE', key, -LOG_LIMIT, -1, 'WITHSCORES')
  for i = 2, #flat, 2 do
    put(log, tonumber(flat[i]), 1)
  end
  return log
end

local function read_buckets(key)
  local flat = call('HGETALL', key .. '~')
  if #flat == 0 then
    return nil
  end
  local field = {}
  for i = 1, #flat, 2 do
    field[flat[i]] = flat[i + 1]
  end
  local known = { schema = field.s, epoch = tonumber(field.e), log = tonumber(field.x or 0), series = {} }
  for place, window in ipairs(numbers(field.s)) do
    local series = series_of(window, grain_of(window))
    series.used = tonumber(field['u' .. place] or 0)
    series.first = floor(known.epoch / series.grain)
    known.series[place] = series
  end
  for name, value in pairs(field) do
    local number = tonumber(name)
    if number then
      local series = known.series[number % STRIDE + 1]
      put(series, (floor(number / STRIDE) + series.first) * series.grain, tonumber(value))
    end
  end
  return known
end

-- The series that knows best what a window has to count: the shortest of those that are as long, else the longest.
local function best_of(all, window)
  local best
  for _, series in ipairs(all) do
    if not best then
      best = series
    elseif best.window < window then
      if series.window > best.window then
        best = series
      end
    elseif series.window >= window and series.window < best.window then
      best = series
    end
  end
  return best
end

local function of_window(known, window)
  for place, series in ipairs(known.series) do
    if series.window == window then
      return series, place
    end
  end
end

-- Whether the log of a key can't tell what the bounds of this span have to count, and the sub-buckets can.
local function log_is_short(known, span, there)
  if not there then
    return known.log < span
  end
  return known.log > 0 and known.log < span and best_of(known.series, span).window > known.log
end
