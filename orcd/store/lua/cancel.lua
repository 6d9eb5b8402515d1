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
    end_queued(KEYS[3], ARGV[1], 'cancelled', ARGV[2], now_ms(), ARGV[3])
    return 'cancelled'
end
return state
