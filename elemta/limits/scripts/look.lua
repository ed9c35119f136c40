-- What a key counts for each bound of a limit. Writes nothing.
local function look(key, spec)
  local log, known = read_log(key, spec.span), read_buckets(key)
  local source = { unpack(known and known.series or {}) }
  if known and spec.span > 0 and log_is_short(known, spec.span, #log.times > 0) then
    log = best_of(known.series, spec.span)
  end
  if not known or known.log > 0 then
    log.window = max(log.window, known and known.log or log.times[1] and NOW - log.times[1] or 0)
    insert(source, log)
  end
  return function(bound, exact)
    if exact then
      return carried(log, bound.window, 1)
    end
    local series = known and of_window(known, bound.window) or best_of(source, bound.window)
    return carried(series, bound.window, grain_of(bound.window))
  end
end

-- The specs of a call: each ARGV behind the program.
local function all_terms()
  local known = {}
  for i = 2, #ARGV do
    known[i - 1] = read_terms(ARGV[i])
  end
  return known
end
