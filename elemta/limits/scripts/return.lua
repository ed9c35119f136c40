-- Gives back charges and leases.
-- KEYS: one for each. ARGV: for each its member, its amount, and the time of the charge, or 0 for a lease.
for i, key in ipairs(KEYS) do
  local name, amount, at = ARGV[3 * i - 2], tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  take_back_members(key, name, amount)
  if at > 0 then
    take_back_slots(key, at, amount)
  end
end
return #KEYS
