-- Note how long messages wait in lists, which nobody says: a list holds only what senders wrote.
-- A list's note is '<taken> <seen> <since> <end> <since> <end> ...': so many messages were taken from it, it was seen at
-- that time last, and the messages before number <end> (the first one that it ever had is 0) wait since about <since>,
-- in the order of the list. Nobody else may take from it: what is deleted from it otherwise makes others look older.
-- KEYS: orcd:ages, then the lists
-- ARGV: messages that come within so many ms have one age, that of the oldest of them; time to live of the notes in s
-- Returns whether orcd:ages had another type and was deleted.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local span = tonumber(ARGV[1])
local num_deleted = 0
if redis.call('TYPE', KEYS[1]).ok ~= 'hash' then
    num_deleted = redis.call('DEL', KEYS[1])
end
for at = 2, #KEYS do
    local length = tonumber(redis.pcall('LLEN', KEYS[at])) or 0
    local note = length > 0 and redis.call('HGET', KEYS[1], KEYS[at])
    if length == 0 then
        redis.call('HDEL', KEYS[1], KEYS[at])
    else
        local numbers = {}
        for number in string.gmatch(note or '', '%-?%d+') do
            numbers[#numbers + 1] = tonumber(number)
        end
        local taken, seen = numbers[1] or 0, numbers[2] or now
        local num_ever, last = taken + length, taken
        local new = {string.format('%d %d', taken, now)}
        local since
        for pair = 3, #numbers - 1, 2 do
            if numbers[pair + 1] > last and last < num_ever then
                since, last = numbers[pair], math.min(numbers[pair + 1], num_ever)
                new[#new + 1] = string.format('%d %d', since, last)
            end
        end
        if num_ever > last then -- some have come since it was seen
            if since and seen - since < span then
                new[#new] = string.format('%d %d', since, num_ever)
            else
                new[#new + 1] = string.format('%d %d', seen, num_ever)
            end
        end
        if #new > 100 then -- of very long lists the oldest messages count as younger, so that a note stays short
            for pair = 2, 51 do
                table.remove(new, pair)
            end
        end
        redis.call('HSET', KEYS[1], KEYS[at], table.concat(new, ' '))
    end
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return num_deleted
