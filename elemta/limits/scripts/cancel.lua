-- Takes back whatever a call of acquire has charged, when it is unknown whether it has. Twice is once.
-- KEYS and ARGV: those of that call, without the specs.
local program, answers = numbers(ARGV[4]), {}
local at, number, asked = 1, tonumber(ARGV[2]), 0
while program[at] do
  asked, at = asked + program[at], at + 1 + 2 * program[at]
end
if #KEYS > asked then
  answers = numbers(call('GET', KEYS[#KEYS]) or '')
  call('DEL', KEYS[#KEYS])
end
at, asked = 1, 0
while program[at] do
  for i = 1, program[at] do
    local key, amount, name = KEYS[asked + i], program[at + 2 * i], ARGV[1] .. '/' .. text(number)
    take_back_members(key, name, amount)
    take_back_members(key, ARGV[3] .. '/' .. name, amount)
    if answers[1 + asked + i] == 0 then
      take_back_slots(key, answers[1], amount)
    end
  end
  asked, at, number = asked + program[at], at + 1 + 2 * program[at], number + 1
end
return asked
