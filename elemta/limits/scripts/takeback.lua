-- Takes charges back by their members, and from the slot of their time where there are sub-buckets.
local function take_back_slots(key, at, amount)
  local head = call('HMGET', key .. '~', 's', 'e')
  -- What was charged before these sub-buckets began is not in them.
  if not head[1] or at < tonumber(head[2]) then
    return
  end
  local left = 0
  for place, window in ipairs(numbers(head[1])) do
    local grain = grain_of(window)
    local name = text((ceil(at / grain) - floor(head[2] / grain)) * STRIDE + place - 1)
    local held = tonumber(call('HGET', key .. '~', name) or 0)
    local gone = min(held, amount)
    left = left + tonumber(call('HGET', key .. '~', 't' .. place) or 0) - gone
    if gone > 0 then
      call('HINCRBY', key .. '~', 't' .. place, text(-gone))
      if gone == held then
        call('HDEL', key .. '~', name)
      else
        call('HINCRBY', key .. '~', name, text(-gone))
      end
    end
  end
  if left == 0 then
    -- Who charges many and sends nothing would else leave as many keys for a whole window.
    call('DEL', key .. '~')
  end
end

local function take_back_members(key, name, amount)
  call('ZREM', key, unpack(members(name, amount)))
end
