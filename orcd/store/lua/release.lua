-- Give running jobs back to the queue at once (their worker shuts down).
-- KEYS: orcd:running, orcd:queued, then every job's record
-- ARGV: ms until the first re-publish, ttl s, then for every job: job id, epoch
-- Returns {queue, priority} for every job that was ours, else {}; the caller publishes their messages.
local now = now_ms()
local answers = {}
for key = 3, #KEYS do
    local id, epoch = ARGV[2 * key - 3], ARGV[2 * key - 2]
    local record = redis.call('HMGET', KEYS[key], 'epoch', 'state', 'queue', 'priority')
    if record[1] ~= epoch or record[2] ~= 'running' then
        answers[#answers + 1] = {}
    else
        redis.call('HINCRBY', KEYS[key], 'epoch', 1)
        redis.call('HINCRBY', KEYS[key], 'attempt', -1) -- leaving in good order is nobody's failure
        redis.call('HSET', KEYS[key], 'state', 'queued', 'owner', '')
        redis.call('ZREM', KEYS[1], id)
        enqueue(KEYS[2], id, now + tonumber(ARGV[1]), 0)
        extend_ttl(KEYS[2], ARGV[2])
        publish_queued(id, 1)
        answers[#answers + 1] = {record[3], record[4]}
    end
end
return answers
