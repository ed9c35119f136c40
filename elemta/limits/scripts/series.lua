-- All charges that count for keys now, so that a caller can go on counting by itself. Writes nothing.
-- KEYS: one for each request. ARGV: as of peek.
-- Returns the time, and for each request the leases held, or for each of its bounds in the order of the spec the
-- number of charges, and of each its time and its amount.

local program, known_specs, answers = numbers(ARGV[1]), all_terms(), { NOW }
for i, key in ipairs(KEYS) do
  local spec = known_specs[program[2 * i - 1]]
  if spec.leases >= 0 then
    insert(answers, call('ZCOUNT', key, '(' .. text(NOW), '+inf'))
  else
    local series_for = look(key, spec)
    for exact, bounds in ipairs({ spec.log, spec.buckets }) do
      for _, bound in ipairs(bounds) do
        local series = series_for(bound, exact == 1)
        insert(answers, #series.times)
        for _, time in ipairs(series.times) do
          insert(answers, time)
          insert(answers, series.amounts[time])
        end
      end
    end
  end
end
return answers
