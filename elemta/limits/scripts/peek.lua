-- How full keys are, and whether each request would pass by itself. Writes nothing.
-- KEYS: one for each request. ARGV: the program, a pair of terms and amount for each, and the terms.
-- Returns for each request its wait, and what counts for each of its bounds in the order of the terms.

local function look(key, terms)
  local log, known = read_log(key, terms.span), read_buckets(key)
  local source = { unpack(known and known.series or {}) }
  if known and terms.span > 0 and log_is_short(known, terms.span, #log.times > 0) then
    log = best_of(known.series, terms.span)
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

local program, known_terms, answers = numbers(ARGV[1]), {}, {}
for i = 2, #ARGV do
  known_terms[i - 1] = read_terms(ARGV[i])
end
for i, key in ipairs(KEYS) do
  local terms, amount = known_terms[program[2 * i - 1]], program[2 * i]
  local place, wait = #answers + 1, 0
  answers[place] = 0
  if terms.leases >= 0 then
    local held = call('ZCOUNT', key, '(' .. text(NOW), '+inf')
    insert(answers, held)
    wait = amount > terms.leases and -1 or (held + amount <= terms.leases and 0 or LEASE)
  else
    local series_for = look(key, terms)
    for _, bound in ipairs(terms.log) do
      local series = series_for(bound, true)
      insert(answers, series.total)
      wait = longer(wait, wait_in(series, bound.limit, amount))
    end
    for _, bound in ipairs(terms.buckets) do
      local series = series_for(bound, false)
      insert(answers, series.total)
      wait = longer(wait, wait_in(series, bound.limit, amount))
    end
  end
  answers[place] = wait
end
return answers
