-- Cancel a job: at once while it is queued, else through its owner, who looks at the flag on every step.
-- KEYS: job record, token log, orcd:queued
-- ARGV: job id, JSON of the terminal event, ttl s
-- Returns the state after the call ('cancelled', 'running' with the wish noted, or a terminal one), or '' if unknown.
local state = redis.call('HGET', KEYS[1], 'state')
if not state then
    return ''
end
if state == 'running' then
    redis.call('HSET', KEYS[1], 'cancel', 1)
    redis.call('PUBLISH', 'orcd:control', cjson.encode({cancel = ARGV[1]}))
elseif state == 'queued' then
    local time = redis.call('TIME')
    local last = redis.call('XREVRANGE', KEYS[2], '+', '-', 'COUNT', 1)
    local n, k = 0, 0
    if last[1] then
        n, k = string.match(last[1][1], '(%d+)-(%d+)')
    end
    redis.call('XADD', KEYS[2], n .. '-' .. (k + 1), 'e', ARGV[2])
    redis.call('HSET', KEYS[1], 'state', 'cancelled', 'finished_ms', time[1] * 1000 + math.floor(time[2] / 1000))
    redis.call('EXPIRE', KEYS[1], ARGV[3])
    redis.call('EXPIRE', KEYS[2], ARGV[3])
    redis.call('ZREM', KEYS[3], ARGV[1])
    redis.call('PUBLISH', 'orcd:{' .. ARGV[1] .. '}:events', ARGV[2])
    return 'cancelled'
end
return state
