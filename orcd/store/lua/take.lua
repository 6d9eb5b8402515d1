-- Note that a message was taken from its queue and is not acknowledged yet, drop such notes of others, and take more
-- messages. Kombu's Redis transport does the same with a call or two for each message.
-- KEYS: kombu's unacked_index and unacked, then the queues, the most urgent first
-- ARGV: time s, at most so many more messages, the delivery tag and the note of the one that was taken, then the delivery
--       tags of those that were acknowledged
-- Returns {number of the queue from 0, message, its delivery tag} for every message taken here. The tag is '' and nothing
-- noted where there is none: kombu, too, sees only when it delivers a message whether it can be read.
local function note(tag, text)
    redis.call('ZADD', KEYS[1], ARGV[1], tag)
    redis.call('HSET', KEYS[2], tag, text)
end
local function noted(text)
    local read, message = pcall(cjson.decode, text)
    local properties = read and type(message) == 'table' and message.properties
    local info = type(properties) == 'table' and properties.delivery_info
    if type(info) ~= 'table' or type(properties.delivery_tag) ~= 'string' then
        return ''
    end
    local place = cjson.encode({info.exchange or '', info.routing_key or ''})
    note(properties.delivery_tag, '[' .. text .. ',' .. string.sub(place, 2))
    return properties.delivery_tag
end
for at = 5, #ARGV do
    redis.call('ZREM', KEYS[1], ARGV[at])
    redis.call('HDEL', KEYS[2], ARGV[at])
end
note(ARGV[3], ARGV[4])
local most, taken = tonumber(ARGV[2]), {}
for key = 3, #KEYS do
    while #taken < most do
        local text = redis.call('RPOP', KEYS[key])
        if not text then
            break
        end
        taken[#taken + 1] = {key - 3, text, noted(text)}
    end
end
return taken
