-- Send a dead letter again as it was, and forget it.
-- KEYS: orcd:dead. ARGV: its id, the list that it goes to ('': the one that it came from)
-- Returns that list; nothing if the dead letter is unknown, '' if not all of the message is there.
local entry = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
if not entry then
    return false
end
local letter = {}
for at = 1, #entry[2], 2 do
    letter[entry[2][at]] = entry[2][at + 1]
end
if not (letter.list and letter.text and #letter.text == tonumber(letter.num_bytes)) then
    return ''
end
local list = ARGV[2] ~= '' and ARGV[2] or letter.list
redis.call('LPUSH', list, letter.text)
redis.call('XDEL', KEYS[1], ARGV[1])
return list
