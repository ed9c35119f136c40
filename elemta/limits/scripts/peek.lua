-- How full keys are, and whether each request would pass by itself. Writes nothing.
-- KEYS: one for each request. ARGV: the program, a pair of spec and amount for each, and the specs.
-- Returns for each request its wait, and what counts for each of its bounds in the order of the spec.

local program, known_specs, answers = numbers(ARGV[1]), all_terms(), {}
for i, key in ipairs(KEYS) do
  local spec, amount = known_specs[program[2 * i - 1]], program[2 * i]
  local place, wait = #answers + 1, 0
  answers[place] = 0
  if spec.leases >= 0 then
    local held = call('ZCOUNT', key, '(' .. text(NOW), '+inf')
    insert(answers, held)
    wait = amount > spec.leases and -1 or (held + amount <= spec.leases and 0 or LEASE)
  else
    local series_for = look(key, spec)
    for _, bound in ipairs(spec.log) do
      local series = series_for(bound, true)
      insert(answers, series.total)
      wait = longer(wait, wait_in(series, bound.limit, amount))
    end
    for _, bound in ipairs(spec.buckets) do
      local series = series_for(bound, false)
      insert(answers, series.total)
      wait = longer(wait, wait_in(series, bound.limit, amount))
    end
  end
  answers[place] = wait
end
return answers
