-- Take queued jobs: a lease and a new epoch each. Whoever held one before can write nothing to it any more.
-- KEYS: orcd:queued, orcd:running, then for every job its record and its log
-- ARGV: owner, model, lease ms, ttl s, then every job's id
-- Returns for every job {status, now, record fields, log entries}: status is claimed, unknown (no record), busy (another
-- owner's lease runs) or finished; the record and the log come with claimed only.
local owner, model, lease, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4]
local now = now_ms()
local answers = {}
for key = 3, #KEYS, 2 do
    local job, log, id = KEYS[key], KEYS[key + 1], ARGV[(key + 7) / 2]
    local state = redis.call('HGET', job, 'state')
    local lease_end = state == 'running' and redis.call('ZSCORE', KEYS[2], id)
    local status = 'claimed'
    if not state then
        status = 'unknown'
    elseif state ~= 'queued' and state ~= 'running' then
        status = 'finished'
    elseif lease_end and tonumber(lease_end) > now then
        status = 'busy'
    end
    if status == 'claimed' then
        redis.call('HSET', job, 'state', 'running', 'owner', owner, 'model', model)
        redis.call('HINCRBY', job, 'epoch', 1)
        redis.call('HINCRBY', job, 'attempt', 1)
        redis.call('HSETNX', job, 'started_ms', now)
        redis.call('ZREM', KEYS[1], id)
        redis.call('ZADD', KEYS[2], now + lease, id)
        redis.call('EXPIRE', job, ttl)
        redis.call('EXPIRE', log, ttl)
        answers[#answers + 1] = {status, now, redis.call('HGETALL', job), redis.call('XRANGE', log, '-', '+')}
    else
        answers[#answers + 1] = {status}
    end
end
extend_ttl(KEYS[2], ttl)
return answers
