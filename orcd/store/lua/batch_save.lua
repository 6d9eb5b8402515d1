-- Write down how far a batch has come, and renew its owner's lease.
-- KEYS: none
-- ARGV: batch id, owner's token, JSON of the batch, lease ms (0: it has ended, or the owner gives it back), ttl s from its
--       end, or 0
-- Returns 0 if the batch is another owner's or gone, 1, or 2 if somebody wants it cancelled.
mend('batches')
local id, token, json, lease, ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local record = key('batch:{' .. id .. '}')
if redis.pcall('HGET', record, 'owner') ~= token then -- an error where the record is of another type
    return 0
end
redis.call('HSET', record, 'batch', json)
if ttl > 0 then
    redis.call('ZREM', key('batches'), id)
    redis.call('EXPIRE', record, ttl)
    extend_ttl('batches:' .. (redis.call('HGET', record, 'tag') or ''), ttl)
else
    redis.call('ZADD', key('batches'), now_ms() + lease, id)
end
return redis.call('HEXISTS', record, 'cancel') == 1 and 2 or 1
