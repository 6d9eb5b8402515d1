-- Look through some of the keys for notes of receivers that are not known (somebody deleted orcd:receivers, and they died
-- before they renewed), and give each a lease: then they are restored like those of any other dead receiver.
-- KEYS: orcd:receivers
-- ARGV: what the keys of notes begin with, lease ms, where to look on ('0': at the beginning), at about so many keys
-- Returns where the next call looks on: '0' if this was the end.
local found = redis.call('SCAN', ARGV[3], 'MATCH', ARGV[1] .. '{*}', 'COUNT', ARGV[4], 'TYPE', 'hash')
for _, notes in ipairs(found[2]) do
    local receiver = string.sub(notes, #ARGV[1] + 2, -2)
    if not redis.call('ZSCORE', KEYS[1], receiver) then
        local time = redis.call('TIME')
        redis.call('ZADD', KEYS[1], time[1] * 1000 + math.floor(time[2] / 1000) + tonumber(ARGV[2]), receiver)
    end
end
return found[1]
