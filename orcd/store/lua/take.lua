-- Take messages and note that they are this receiver's and not acknowledged yet; drop its notes of acknowledged ones.
-- A note is written before its message is taken, so that neither a full Redis nor a lost answer loses one.
-- KEYS: orcd:receivers, orcd:unacked:{R}, then the queues' lists, the most urgent first
-- ARGV: receiver, lease ms, at most so many messages, number of the first one taken, then the tags of acknowledged ones
-- Returns {tag, message} for each, and the lists whose keys have another type. A tag is '<number> <list>', so that a note
-- says where its message goes back to.
for at = 5, #ARGV do
    redis.call('HDEL', KEYS[2], ARGV[at])
end
local most, taken, unusable = tonumber(ARGV[3]), {}, {}
for key = 3, #KEYS do
    while #taken < most do
        local text = redis.pcall('LINDEX', KEYS[key], -1)
        if type(text) ~= 'string' then -- it is empty, or its key has another type: the other lists go on
            if type(text) == 'table' then
                unusable[#unusable + 1] = KEYS[key]
            end
            break
        end
        if #taken == 0 then
            local kind = redis.call('TYPE', KEYS[1]).ok
            if kind ~= 'zset' and kind ~= 'none' then -- restore replaces it; what is taken before has no lease
                return {taken, unusable}
            end
            local time = redis.call('TIME')
            local now = time[1] * 1000 + math.floor(time[2] / 1000)
            redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
        end
        local tag = string.format('%d %s', tonumber(ARGV[4]) + #taken, KEYS[key])
        redis.call('HSET', KEYS[2], tag, text)
        redis.call('RPOP', KEYS[key])
        taken[#taken + 1] = {tag, text}
    end
end
return {taken, unusable}
