-- Batches that nobody runs, or one of them taken over.
-- KEYS: none
-- ARGV: lease ms, owner's token, batch id or '' to ask which there are
-- Returns without an id up to 100 ids of batches whose owner's lease ran out; with one its record, a list of fields and
-- values, or an empty list if somebody has it.
mend('batches')
local lease, token, id = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local now = now_ms()
if id == '' then
    local ids = {}
    for _, member in ipairs(redis.call('ZRANGEBYSCORE', key('batches'), '-inf', now, 'LIMIT', 0, 100)) do
        if string.match(member, '^[%w_-]+$') then
            ids[#ids + 1] = member
        else
            redis.call('ZREM', key('batches'), member)
        end
    end
    return ids
end
local ends = tonumber(redis.call('ZSCORE', key('batches'), id))
if not ends or ends > now then
    return {}
end
local record = key('batch:{' .. id .. '}')
if redis.call('EXISTS', record) == 0 then
    redis.call('ZREM', key('batches'), id)
    return {}
end
redis.call('HSET', record, 'owner', token)
redis.call('ZADD', key('batches'), now + lease, id)
return redis.call('HGETALL', record)
