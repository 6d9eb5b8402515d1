-- What the scripts of jobs have in common: `orcd.store.schema.script` puts this in front of each of them.

-- The time of the Redis clock in Unix milliseconds.
local function now_ms()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function job_key(id)
    return 'orcd:{' .. id .. '}:job'
end

local function log_key(id)
    return 'orcd:{' .. id .. '}:log'
end

-- Send an event to those who follow a job; returns how many got it.
local function publish(id, json)
    return redis.call('PUBLISH', 'orcd:{' .. id .. '}:events', json)
end

local function publish_queued(id, position)
    publish(id, cjson.encode({type = 'queued', position = position}))
end

-- Keep orcd:queued or orcd:running for ``ttl`` s from now, or for longer where another job needs it.
local function extend_ttl(key, ttl)
    if redis.call('TTL', key) < tonumber(ttl) then
        redis.call('EXPIRE', key, ttl)
    end
end

-- Have the reaper look at a queued job at the time ``again``, or at its deadline (0: none) if that is sooner.
local function enqueue(queued, id, again, deadline)
    redis.call('ZADD', queued, deadline > 0 and math.min(again, deadline) or again, id)
end

-- Put a job's record into a terminal state.
local function finish(job, state, now, ttl)
    redis.call('HSET', job, 'state', state, 'finished_ms', now)
    redis.call('EXPIRE', job, ttl)
end

-- End a job that is in the queue: ``event``, the JSON of its terminal event, goes behind the last one in its log.
local function end_queued(queued, id, state, event, now, ttl)
    local log = log_key(id)
    local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)
    local n, k = 0, 0
    if last[1] then
        n, k = string.match(last[1][1], '(%d+)-(%d+)')
    end
    redis.call('XADD', log, n .. '-' .. (k + 1), 'e', event)
    finish(job_key(id), state, now, ttl)
    redis.call('EXPIRE', log, ttl)
    redis.call('ZREM', queued, id)
    publish(id, event)
end

