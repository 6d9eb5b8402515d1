-- Ask a batch's owner to cancel it.
-- KEYS: none
-- ARGV: batch id
-- Returns 1, or 0 if there is no such batch or it has ended.
local record = key('batch:{' .. ARGV[1] .. '}')
if not redis.call('ZSCORE', key('batches'), ARGV[1]) then
    return 0
end
redis.call('HSET', record, 'cancel', 1)
return 1
