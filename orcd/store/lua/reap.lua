-- Find jobs that nobody works on and say which messages to publish again.
-- Running jobs whose lease ran out go back to the queue. Queued jobs whose message may be lost, or stuck behind more
-- urgent ones, come up again, each time after twice as long and one priority more urgent: so nobody starves.
-- Publishing too often is harmless: a claim decides who runs a job. Queued jobs whose deadline has passed are ended.
-- KEYS: orcd:running, orcd:queued
-- ARGV: at most so many jobs of each kind, ms until the first re-publish, ttl s, JSON of the event of an expired job
-- Returns {job id, queue, priority, 1 if its lease had run out} for every job to publish.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local most, patience, ttl = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local found = {}
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, most)) do
    local job = 'orcd:{' .. id .. '}:job'
    local record = redis.call('HMGET', job, 'state', 'queue', 'priority')
    redis.call('ZREM', KEYS[1], id)
    if record[1] == 'running' then
        redis.call('HINCRBY', job, 'epoch', 1)
        redis.call('HSET', job, 'state', 'queued', 'owner', '', 'published', 0)
        redis.call('ZADD', KEYS[2], now + patience, id)
        redis.call('PUBLISH', 'orcd:{' .. id .. '}:events', cjson.encode({type = 'queued', position = 1}))
        found[#found + 1] = {id, record[2], record[3], 1}
    end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, most)) do
    local job = 'orcd:{' .. id .. '}:job'
    local record = redis.call('HMGET', job, 'state', 'queue', 'priority', 'deadline_ms')
    local deadline = tonumber(record[4] or 0)
    if record[1] == 'queued' and deadline > 0 and deadline <= now then
        local log = 'orcd:{' .. id .. '}:log'
        local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)
        local n, k = 0, 0
        if last[1] then
            n, k = string.match(last[1][1], '(%d+)-(%d+)')
        end
        redis.call('XADD', log, n .. '-' .. (k + 1), 'e', ARGV[4])
        redis.call('HSET', job, 'state', 'expired', 'finished_ms', now)
        redis.call('EXPIRE', job, ttl)
        redis.call('EXPIRE', log, ttl)
        redis.call('ZREM', KEYS[2], id)
        redis.call('PUBLISH', 'orcd:{' .. id .. '}:events', ARGV[4])
    elseif record[1] == 'queued' then
        local times = math.min(redis.call('HINCRBY', job, 'published', 1), 10)
        local again = now + patience * 2 ^ times
        redis.call('ZADD', KEYS[2], deadline > 0 and math.min(again, deadline) or again, id)
        found[#found + 1] = {id, record[2], math.max(0, record[3] - times), 0}
    else
        redis.call('ZREM', KEYS[2], id)
    end
end
if #found > 0 and redis.call('TTL', KEYS[2]) < tonumber(ttl) then -- other jobs may be kept for longer
    redis.call('EXPIRE', KEYS[2], ttl)
end
return found
