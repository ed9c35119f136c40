-- Writes leases down until 30 s from now, also those that are not there any more: their holder says so.
-- KEYS: one for each. ARGV: for each its member and its amount.
for i, key in ipairs(KEYS) do
  local flat = {}
  for place, name in ipairs(members(ARGV[2 * i - 1], tonumber(ARGV[2 * i]))) do
    flat[2 * place - 1], flat[2 * place] = text(NOW + LEASE), name
  end
  call('ZADD', key, unpack(flat))
  keep_leases(key)
end
return #KEYS
