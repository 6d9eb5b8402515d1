-- Write a new job's record. A job id that exists already is left alone, so submitting twice is harmless.
-- KEYS: job record, orcd:queued
-- ARGV: job id, request JSON, queue, priority, time to deadline ms (0: none), ttl s, ms until the first re-publish
-- Returns {1 if created, created_ms}.
if redis.call('EXISTS', KEYS[1]) == 1 then
    return {0, tonumber(redis.call('HGET', KEYS[1], 'created_ms'))}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local deadline = tonumber(ARGV[5])
-- Epochs begin at the time: should Redis lose its data and the id come again, the old job's owner stays fenced.
redis.call('HSET', KEYS[1], 'request', ARGV[2], 'state', 'queued', 'queue', ARGV[3], 'priority', ARGV[4],
    'created_ms', now, 'deadline_ms', deadline > 0 and now + deadline or 0, 'epoch', now, 'attempt', 0, 'published', 0)
redis.call('EXPIRE', KEYS[1], ARGV[6])
redis.call('DEL', 'orcd:{' .. ARGV[1] .. '}:log') -- an expired job of this id may have left its own
local again = now + tonumber(ARGV[7])
redis.call('ZADD', KEYS[2], deadline > 0 and math.min(again, now + deadline) or again, ARGV[1])
if redis.call('TTL', KEYS[2]) < tonumber(ARGV[6]) then -- other jobs may be kept for longer
    redis.call('EXPIRE', KEYS[2], ARGV[6])
end
redis.call('PUBLISH', 'orcd:{' .. ARGV[1] .. '}:events',
    cjson.encode({type = 'queued', position = redis.call('ZCARD', KEYS[2])}))
return {1, now}
