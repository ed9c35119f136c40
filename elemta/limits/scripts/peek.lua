-- How full keys are, and whether each request would pass by itself. Writes nothing.
-- KEYS: one for each request. ARGV: the program, a pair of terms and amount for each, and the terms.
-- Returns for each request its wait, and what counts for each of its bounds in the order of the terms.

local program, known_terms, answers = numbers(ARGV[1]), all_terms(), {}
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
