-- Ask a batch's owner to cancel it.
-- KEYS: none
-- ARGV: batch id, the time in Unix seconds
-- Returns nothing. A batch that has ended, or is not there, is left alone.
local record = key('batch:{' .. ARGV[1] .. '}')
if redis.call('ZSCORE', key('batches'), ARGV[1]) then
    redis.call('HSETNX', record, 'cancel', ARGV[2])
end
