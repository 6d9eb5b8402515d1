-- Find jobs that nobody works on and say which messages to publish again.
-- Running jobs whose lease ran out go back to the queue. Queued jobs whose message may be lost, or stuck behind more
-- urgent ones, come up again, each time after twice as long and one priority more urgent: so nobody starves.
-- Publishing too often is harmless: a claim decides who runs a job. Queued jobs whose deadline has passed are ended.
-- KEYS: orcd:running, orcd:queued
-- ARGV: at most so many jobs of each kind, ms until the first re-publish, ttl s, JSON of the event of an expired job
-- Returns {job id, queue, priority, 1 if its lease had run out} for every job to publish.
local now = now_ms()
local most, patience, ttl = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local found = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, most)) do
    local job = job_key(id)
    local record = redis.call('HMGET', job, 'state', 'queue', 'priority')
    redis.call('ZREM', KEYS[1], id)
    if record[1] == 'running' then
        redis.call('HINCRBY', job, 'epoch', 1)
        redis.call('HSET', job, 'state', 'queued', 'owner', '', 'published', 0)
        enqueue(KEYS[2], id, now + patience, 0)
        publish_queued(id, 1)
        found[#found + 1] = {id, record[2], record[3], 1}
    end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, most)) do
    local job = job_key(id)
    local record = redis.call('HMGET', job, 'state', 'queue', 'priority', 'deadline_ms')
    local deadline = tonumber(record[4] or 0)
    if record[1] == 'queued' and deadline > 0 and deadline <= now then
        end_queued(KEYS[2], id, 'expired', ARGV[4], now, ttl)
    elseif record[1] == 'queued' then
        local times = math.min(redis.call('HINCRBY', job, 'published', 1), 10)
        enqueue(KEYS[2], id, now + patience * 2 ^ times, deadline)
        found[#found + 1] = {id, record[2], math.max(0, record[3] - times), 0}
    else
        redis.call('ZREM', KEYS[2], id)
    end
end
if #found > 0 then
    extend_ttl(KEYS[2], ttl)
end
return found
