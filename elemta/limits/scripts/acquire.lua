-- Charges decisions, one after the other, each all or none; one of them never names a key twice.
-- KEYS: one for each request of each decision; one more, where the charges are noted, if a limit has sub-buckets.
-- ARGV: boot, number of the first decision, node, program, and specs in the order in which the program counts them.
-- The program: for each decision its number of requests, and for each of these the number of its spec, and the amount.
-- Returns the time and for each request 0: charged; above 0: the wait; -1: never; -2: it passes, others do not.

local MOST_STEPS = 8

-- Make the log from the sub-buckets: nodes with other numbers counted only there.
local function rebuild_log(key, known, span)
  local log = carried(best_of(known.series, span), span, 1)
  call('DEL', key)
  local free, flat = LOG_LIMIT, {}
  for i = #log.times, 1, -1 do
    local time = log.times[i]
    for copy = 1, min(free, log.amounts[time]) do
      insert(flat, text(time))
      insert(flat, '~' .. text(time) .. ':' .. copy)
    end
    free = free - min(free, log.amounts[time])
  end
  if #flat > 0 then
    call('ZADD', key, unpack(flat))
    call('PEXPIRE', key, text(ceil((log.times[#log.times] + span - NOW) / 1000)))
  end
end

local function write_series(flat, series, place)
  insert(flat, 't' .. place)
  insert(flat, text(series.total))
  insert(flat, 'o' .. place)
  insert(flat, text(series.times[1] or 0))
  insert(flat, 'u' .. place)
  insert(flat, text(series.used))
end

local function rewrite(key, kept, epoch, log)
  local heads, flat, last = {}, {}, 0
  for place, series in ipairs(kept) do
    heads[place] = text(series.window)
    write_series(flat, series, place)
    local first = floor(epoch / series.grain)
    for _, time in ipairs(series.times) do
      insert(flat, text((time / series.grain - first) * STRIDE + place - 1))
      insert(flat, text(series.amounts[time]))
    end
    last = max(last, (series.times[#series.times] or 0) + series.window)
  end
  call('DEL', key .. '~')
  if last > NOW then
    call('HSET', key .. '~', 's', table.concat(heads, ' '), 'e', text(epoch), 'x', text(log), unpack(flat))
    call('PEXPIRE', key .. '~', text(ceil((last - NOW) / 1000)))
    return true
  end
  return false
end

-- Bring the sub-buckets of a key up to date, in the slow way; called when they have other windows than ours, or
-- when the oldest has expired. Returns them as `charge` needs them, or nil where there are none.
local function renew_buckets(key, spec, known)
  local log = read_log(key, spec.span)
  local all = { unpack(known and known.series or {}) }
  if known and known.log > 0 or not known then
    local span = known and known.log or max(spec.span, log.times[1] and NOW - log.times[1] or 0)
    log.window = span
    insert(all, log)
  end
  local kept, gone = {}, {}
  for place, window in ipairs(spec.windows) do
    kept[place] = known and of_window(known, window) or carried(best_of(all, window), window, grain_of(window))
    kept[place].used = kept[place].used or NOW
  end
  for place, series in ipairs(known and known.series or {}) do
    local ours = false
    for _, window in ipairs(spec.windows) do
      ours = ours or window == series.window
    end
    if not ours and #kept < STRIDE and series.used + series.window + series.grain > NOW then
      insert(kept, series)
    end
    for _, time in ipairs(prune(series)) do
      insert(gone, text((time / series.grain - series.first) * STRIDE + place - 1))
    end
  end
  local heads, total, oldest = {}, {}, {}
  for place, series in ipairs(kept) do
    heads[place], total[place], oldest[place] = text(series.window), series.total, series.times[1] or 0
  end
  local epoch = known and known.epoch or min(NOW, log.times[1] or NOW)
  local there = true
  if known and known.schema == table.concat(heads, ' ') then
    local flat = {}
    for place, series in ipairs(kept) do
      write_series(flat, series, place)
    end
    if #gone > 0 then
      call('HDEL', key .. '~', unpack(gone))
    end
    call('HSET', key .. '~', unpack(flat))
  else
    there = rewrite(key, kept, epoch, known and known.log or spec.span)
  end
  if not there then
    return nil
  end
  local windows = {}
  for place, series in ipairs(kept) do
    windows[place] = series.window
  end
  return { epoch = epoch, windows = windows, total = total, oldest = oldest, log = known and known.log or spec.span }
end

-- Drop the slots of a window that no longer count, from the oldest on. Returns the total and the oldest that are
-- left; nothing where that would take many steps.
local function drop_oldest(key, epoch, window, place, total, oldest)
  local grain = grain_of(window)
  local first, slot, gone = floor(epoch / grain), oldest / grain, {}
  for _ = 1, MOST_STEPS do
    local name = text((slot - first) * STRIDE + place - 1)
    local held = tonumber(call('HGET', key, name) or 0)
    if held > 0 and slot * grain + window > NOW then
      break
    end
    if held > 0 then
      insert(gone, name)
      total = total - held
    end
    slot = slot + 1
    if total == 0 then
      slot = 0
      break
    end
  end
  if total > 0 and slot * grain + window <= NOW then
    return nil
  end
  if #gone > 0 then
    call('HDEL', key, unpack(gone))
  end
  call('HSET', key, 't' .. place, text(total), 'o' .. place, text(slot * grain))
  return total, slot * grain
end

-- The sub-buckets of a key; nil where there are none.
local function look_at_buckets(key, spec)
  local head = call('HMGET', key .. '~', unpack(spec.fields))
  if not head[1] then
    if #spec.windows == 0 or call('EXISTS', key) == 0 then
      return nil
    end
    return renew_buckets(key, spec, nil)
  end
  local total, oldest, stale = {}, {}, head[1] ~= spec.schema
  for place, window in ipairs(spec.windows) do
    if stale then
      break
    end
    local sum, slot = tonumber(head[2 + 2 * place]), tonumber(head[3 + 2 * place])
    if sum > 0 and slot + window <= NOW then
      sum, slot = drop_oldest(key .. '~', tonumber(head[2]), window, place, sum, slot)
    end
    total[place], oldest[place], stale = sum, slot, not sum
  end
  local log = tonumber(head[3])
  if not stale and (log == spec.span or spec.span == 0) then
    return { epoch = tonumber(head[2]), windows = spec.windows, total = total, oldest = oldest, log = log }
  end
  local known = read_buckets(key)
  if spec.span > 0 then
    local there = call('EXISTS', key) == 1
    if log_is_short(known, spec.span, there) then
      rebuild_log(key, known, spec.span)
    end
    if known.log < spec.span then
      -- Others may have charged it last, and they do not keep it for us.
      known.log = spec.span
      call('HSET', key .. '~', 'x', text(spec.span))
      call('PEXPIRE', key, text(ceil(spec.span / 1000)))
    end
  end
  return renew_buckets(key, spec, known)
end

-- How much of the exact log still counts; it is trimmed, unless nodes with a longer window use it too.
local function look_at_log(state, spec)
  local key = state.key
  state.left = call('PTTL', key)
  if state.left == -2 then
    state.card, state.trimmed = 0, true
    return
  end
  if state.left <= ceil(spec.span / 1000) then
    call('ZREMRANGEBYSCORE', key, '-inf', text(NOW - spec.span))
    state.trimmed = true
  end
  state.card = call('ZCARD', key)
end

local function wait_for_log(state, bound, amount)
  if amount > bound.limit then
    return -1
  end
  local used = state.card
  if used + amount <= bound.limit then
    return 0
  end
  if not (state.trimmed and bound.window == state.span) then
    used = call('ZCOUNT', state.key, '(' .. text(NOW - bound.window), '+inf')
  end
  local excess = used + amount - bound.limit
  if excess <= 0 then
    return 0
  end
  local place = state.card - used + excess - 1
  local found = call('ZRANGE', state.key, place, place, 'WITHSCORES')
  return tonumber(found[2]) + bound.window - NOW
end

local function wait_for_buckets(state, bound, amount)
  if amount > bound.limit then
    return -1
  end
  local used = state.buckets and state.buckets.total[bound.place] or 0
  if used + amount <= bound.limit then
    return 0
  end
  local series = of_window(read_buckets(state.key), bound.window)
  prune(series)
  return wait_in(series, bound.limit, amount)
end

local function look_at_leases(state, spec, amount)
  if amount > spec.leases then
    return -1
  end
  local key = state.key
  call('ZREMRANGEBYSCORE', key, '-inf', text(NOW))
  if call('ZCARD', key) + amount <= spec.leases then
    return 0
  end
  -- A server whose clock was ahead of this one's has granted them: nothing may outlive its node for longer.
  local far = call('ZRANGEBYSCORE', key, '(' .. text(NOW + LEASE), '+inf')
  for _, member in ipairs(far) do
    call('ZADD', key, text(NOW + LEASE), member)
  end
  return LEASE
end

-- Whether `amount` passes, and what `charge` has to know.
local function look(state, spec, amount)
  if spec.leases >= 0 then
    return look_at_leases(state, spec, amount)
  end
  state.buckets = look_at_buckets(state.key, spec)
  local wait = 0
  if spec.span > 0 then
    state.span = spec.span
    look_at_log(state, spec)
    for _, bound in ipairs(spec.log) do
      wait = longer(wait, wait_for_log(state, bound, amount))
    end
  end
  for _, bound in ipairs(spec.buckets) do
    wait = longer(wait, wait_for_buckets(state, bound, amount))
  end
  return wait
end

local function charge_log(state, spec, amount, member)
  local flat = {}
  for i, name in ipairs(members(member, amount)) do
    flat[2 * i - 1], flat[2 * i] = text(NOW), name
  end
  call('ZADD', state.key, unpack(flat))
  local life = ceil(spec.span / 1000)
  if spec.span > 0 and state.left < life then
    call('PEXPIRE', state.key, life)
  end
  if spec.span == 0 or not state.trimmed then
    -- The newest are enough for any log that there can be.
    call('ZREMRANGEBYRANK', state.key, 0, -LOG_LIMIT - 1)
  end
end

local function charge_buckets(state, spec, amount)
  local key, buckets, flat, life = state.key .. '~', state.buckets, {}, 0
  local fresh = not buckets
  if fresh then
    buckets = { epoch = NOW, windows = spec.windows, total = {}, oldest = {} }
    call('HSET', key, 's', spec.schema, 'e', text(NOW), 'x', text(spec.span))
  end
  for place, window in ipairs(buckets.windows) do
    local grain = grain_of(window)
    local slot = ceil(NOW / grain)
    local name = text((slot - floor(buckets.epoch / grain)) * STRIDE + place - 1)
    local held = call('HINCRBY', key, name, text(amount))
    local total, oldest = buckets.total[place] or 0, buckets.oldest[place] or 0
    insert(flat, 't' .. place)
    insert(flat, text(total + amount))
    if total == 0 or slot * grain < oldest then
      insert(flat, 'o' .. place)
      insert(flat, text(slot * grain))
    end
    if held == amount and spec.windows[place] == window then
      insert(flat, 'u' .. place)
      insert(flat, text(NOW))
      life = max(life, ceil((slot * grain + window - NOW) / 1000))
    end
  end
  call('HSET', key, unpack(flat))
  if fresh then
    call('PEXPIRE', key, text(life))
  elseif life > 0 then
    call('PEXPIRE', key, text(life), 'GT')
  end
end

local function charge(state, spec, amount, number)
  if spec.leases >= 0 then
    for _, name in ipairs(members(ARGV[3] .. '/' .. ARGV[1] .. '/' .. number, amount)) do
      call('ZADD', state.key, text(NOW + LEASE), name)
    end
    keep_leases(state.key)
    return
  end
  if spec.span > 0 or call('EXISTS', state.key) == 1 then
    charge_log(state, spec, amount, ARGV[1] .. '/' .. number)
  end
  if state.buckets and state.buckets.log > spec.span then
    -- The log may be gone before this charge is as old as others need it: then only the sub-buckets know of it.
    call('HSET', state.key .. '~', 'x', text(spec.span))
  end
  if #spec.windows > 0 or state.buckets then
    charge_buckets(state, spec, amount)
  end
end

local program, known_specs, answers = numbers(ARGV[4]), {}, { NOW }
for i = 5, #ARGV do
  known_specs[i - 4] = read_terms(ARGV[i])
end
local at, number, asked, charged = 1, tonumber(ARGV[2]), 0, false
while program[at] do
  local count, states, granted = program[at], {}, true
  for i = 1, count do
    local spec, amount = known_specs[program[at + 2 * i - 1]], program[at + 2 * i]
    states[i] = { key = KEYS[asked + i] }
    if spec.binding then
      local wait = look(states[i], spec, amount)
      answers[1 + asked + i] = wait
      granted = granted and wait == 0
    end
  end
  for i = 1, count do
    local spec, amount = known_specs[program[at + 2 * i - 1]], program[at + 2 * i]
    local place = 1 + asked + i
    if not granted then
      if not spec.binding or answers[place] == 0 then
        answers[place] = -2
      end
    else
      if not spec.binding then
        answers[place] = look(states[i], spec, amount)
      end
      if answers[place] == 0 then
        charge(states[i], spec, amount, text(number))
        charged = true
      end
    end
  end
  asked, at, number = asked + count, at + 1 + 2 * count, number + 1
end
if charged and #KEYS > asked then
  -- Who never gets this answer can still take back what was charged.
  local words = {}
  for i, answer in ipairs(answers) do
    words[i] = text(answer)
  end
  call('SET', KEYS[#KEYS], table.concat(words, ' '), 'PX', 10000)
end
return answers
