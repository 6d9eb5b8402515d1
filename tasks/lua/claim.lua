-- Take a queued job: a lease and a new epoch. Whoever held it before can write nothing any more.
-- KEYS: job record, token log, orcd:queued, orcd:running
-- ARGV: job id, owner, model, lease ms, ttl s
-- Returns {status, now, record fields, log entries}: status is claimed, unknown (no record), busy (another owner's
-- lease runs) or finished; the record and the log come with claimed only.
local state = redis.call('HGET', KEYS[1], 'state')
if not state then
    return {'unknown'}
end
if state ~= 'queued' and state ~= 'running' then
    return {'finished'}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if state == 'running' then
    local lease_end = redis.call('ZSCORE', KEYS[4], ARGV[1])
    if lease_end and tonumber(lease_end) > now then
        return {'busy'}
    end
end
redis.call('HSET', KEYS[1], 'state', 'running', 'owner', ARGV[2], 'model', ARGV[3])
redis.call('HINCRBY', KEYS[1], 'epoch', 1)
redis.call('HINCRBY', KEYS[1], 'attempt', 1)
redis.call('HSETNX', KEYS[1], 'started_ms', now)
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('ZADD', KEYS[4], now + tonumber(ARGV[4]), ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[5])
redis.call('EXPIRE', KEYS[2], ARGV[5])
if redis.call('TTL', KEYS[4]) < tonumber(ARGV[5]) then -- other jobs may be kept for longer
    redis.call('EXPIRE', KEYS[4], ARGV[5])
end
return {'claimed', now, redis.call('HGETALL', KEYS[1]), redis.call('XRANGE', KEYS[2], '-', '+')}
