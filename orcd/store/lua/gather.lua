-- Move messages from the lists that kombu gives a priority's messages by itself into those that are taken from.
-- KEYS: a list, the one that its messages go to, and so on; ARGV: at most so many messages
-- Returns how many were moved. They keep their order, and each is there before it is gone from where it was.
local most, num_moved = tonumber(ARGV[1]), 0
for at = 1, #KEYS, 2 do
    local left = tonumber(redis.pcall('LLEN', KEYS[at])) or 0
    local kind = left > 0 and redis.call('TYPE', KEYS[at + 1]).ok
    if kind == 'list' or kind == 'none' then
        while left > 0 and num_moved < most do
            redis.call('LPUSH', KEYS[at + 1], redis.call('LINDEX', KEYS[at], -1))
            redis.call('RPOP', KEYS[at])
            left, num_moved = left - 1, num_moved + 1
        end
    end
end
return num_moved
