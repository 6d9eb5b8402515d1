-- Write a new job's record. A job id that exists already is left alone, so submitting twice is harmless.
-- KEYS: job record, orcd:queued
-- ARGV: job id, request JSON, queue, priority, time to deadline ms (0: none), ttl s, ms until the first re-publish
-- Returns {1 if created, created_ms}.
if redis.call('EXISTS', KEYS[1]) == 1 then
    return {0, tonumber(redis.call('HGET', KEYS[1], 'created_ms'))}
end
local now = now_ms()
local deadline = tonumber(ARGV[5])
if deadline > 0 then
    deadline = now + deadline
end
-- Epochs begin at the time: should Redis lose its data and the id come again, the old job's owner stays fenced.
redis.call('HSET', KEYS[1], 'request', ARGV[2], 'state', 'queued', 'queue', ARGV[3], 'priority', ARGV[4],
    'created_ms', now, 'deadline_ms', deadline, 'epoch', now, 'attempt', 0, 'published', 0)
redis.call('EXPIRE', KEYS[1], ARGV[6])
redis.call('DEL', log_key(ARGV[1])) -- an expired job of this id may have left its own
enqueue(KEYS[2], ARGV[1], now + tonumber(ARGV[7]), deadline)
extend_ttl(KEYS[2], ARGV[6])
publish_queued(ARGV[1], redis.call('ZCARD', KEYS[2]))
return {1, now}
