-- What the scripts of jobs have in common: `orcd.store.schema.script` puts what a script uses of it in front, behind the
-- definition of `prefix`, with which all keys and channels begin.

-- One of our keys.
local function key(name)
    return prefix .. 'orcd:' .. name
end

-- A key of one job, or its channel.
local function key_of(id, name)
    return prefix .. 'orcd:{' .. id .. '}:' .. name
end

-- The time of the Redis clock in Unix milliseconds.
local function now_ms()
    local time = redis.call('TIME')
    return time[1] * 1000 + math.floor(time[2] / 1000)
end

-- Delete a sorted set that all share where somebody has put a key of another type in its place: nothing of ours is in that,
-- and no job and no batch is to blame for it.
local function mend(name)
    local kind = redis.call('TYPE', key(name)).ok
    if kind ~= 'zset' and kind ~= 'none' then
        redis.log(redis.LOG_WARNING, key(name) .. ' is of a wrong type; it was deleted')
        redis.call('DEL', key(name))
    end
end

-- Mend the lists of all jobs. What was in them is found by its messages, its owners' renewals and its readers.
local function mend_shared_keys()
    mend('queued')
    mend('running')
    mend('unanswered')
end

-- Run one job's step. Returns what it returned, or nil where this job's keys are of a wrong type or hold what cannot be
-- used: that concerns no other job. What Redis refuses to everybody (it is full, read-only, without its replicas, cannot
-- save, loads its data, does not allow its user to, or lacks the command) is an error of the whole script; it comes with the
-- first write, so nothing is half done.
local function guarded(step, ...)
    local done, answer = pcall(step, ...)
    if done then
        return answer
    end
    local text = tostring(type(answer) == 'table' and answer.err or answer)
    local refusals = {'OOM ', 'READONLY', 'NOREPLICAS', 'MISCONF', 'LOADING', 'MASTERDOWN', 'NOPERM', "can't run this command",
        "can't access at least one of the keys", 'read only replica', 'command called from'}
    for _, refusal in ipairs(refusals) do
        if string.find(text, refusal, 1, true) then
            error(answer, 0)
        end
    end
    return nil
end

-- A number in a record, ``otherwise`` where there is none that can be one.
local function number(text, otherwise)
    local value = tonumber(text)
    return value and value >= 0 and value < 2 ^ 53 and value or otherwise
end

-- Whether a record was written by a version of orcd that is newer than this script: then it is left alone.
local function is_newer(schema)
    return tonumber(schema or 1) > 4
end

-- Raise an error for a state that no job has, unless a newer version may know it. No record (nil) is none.
local function check_state(state, schema)
    local known = {queued = 1, running = 1, succeeded = 1, failed = 1, cancelled = 1, expired = 1}
    if state and not known[state] and not is_newer(schema) then
        error('no state')
    end
end

-- The queue of a job. Version 1 had jobs for any model in `celery`, which nobody serves any more, and names as they are.
-- Raises an error for what is no queue of ours.
local function queue_of(queue, schema)
    if not schema then
        queue = queue == 'celery' and 'orcd' or string.gsub(queue, '[^%w_.-]', function(character)
            return string.format('%%%02X', string.byte(character))
        end)
    end
    if queue ~= 'orcd' and not string.match(queue, '^orcd%.[%w_.%%-]+$') then
        error('no queue')
    end
    return queue
end

-- Whether a worker has said in the last minute that it serves a queue (by default), or that it takes its jobs (`ready`).
local function is_served(queue, now, name)
    local seen = redis.pcall('ZSCORE', key(name or 'served'), queue)
    return type(seen) == 'table' or seen and tonumber(seen) > now - 60000
end

-- Whether a queue is for one model, which no worker serves.
local function is_unserved(queue)
    return queue ~= 'orcd' and not is_served(queue, now_ms())
end

-- The model whose jobs are in a queue.
local function model_of(queue)
    return (string.gsub(string.sub(queue, 6), '%%(%x%x)', function(digits)
        return string.char(tonumber(digits, 16))
    end))
end

-- Why the jobs of a queue wait, for people; where no worker serves it, which models there are workers for.
local function reason_to_wait(queue, now, served)
    if served then
        return is_served(queue, now, 'ready') and 'waiting for a free slot' or 'loading the model'
    elseif queue == 'orcd' then
        return 'no worker is running'
    end
    local queues = redis.pcall('ZRANGEBYSCORE', key('served'), now - 60000, '+inf', 'LIMIT', 0, 21)
    local models = {}
    for _, name in ipairs(queues.err and {} or queues) do
        if name ~= 'orcd' then
            models[#models + 1] = model_of(name)
        end
    end
    table.sort(models)
    local others = #models > 0 and '; there are workers for ' .. table.concat(models, ', ') or ''
    return 'no worker serves ' .. model_of(queue) .. others
end

-- Send an event to those who follow a job; returns how many got it.
local function publish(id, json)
    return redis.call('PUBLISH', key_of(id, 'events'), json)
end

local function publish_queued(id, queue, position, now)
    local served = is_served(queue, now)
    local event = {type = 'queued', position = position, reason = reason_to_wait(queue, now, served)}
    if not served then
        event.served = false
    end
    publish(id, cjson.encode(event))
end

local function error_event(code, message, retriable)
    return cjson.encode({type = 'error', code = code, message = message, retriable = retriable or false})
end

-- How long a job's keys are kept, in seconds: after its end, and while it waits or runs.
local function lifetimes(id)
    local record = redis.call('HMGET', key_of(id, 'job'), 'ttl_s', 'queue_limit_s')
    local ttl = math.max(1, math.floor(math.min(number(record[1], 86400), 1e9)))
    return ttl, ttl + math.floor(math.min(number(record[2], 86400), 1e9))
end

-- Keep a key that jobs share for ``ttl`` s from now, or for longer where another job needs it.
local function extend_ttl(name, ttl)
    if redis.call('TTL', key(name)) < ttl then
        redis.call('EXPIRE', key(name), ttl)
    end
end

-- Keep all keys of a job for ``ttl`` s from now.
local function expire(id, ttl)
    redis.call('EXPIRE', key_of(id, 'job'), ttl)
    redis.call('EXPIRE', key_of(id, 'log'), ttl)
    redis.call('EXPIRE', key_of(id, 'messages'), ttl)
end

-- Keep a job's keys while it waits or runs; to write no more than needed, only when a tenth of the time is over. Returns
-- for how long they are kept.
local function keep(id)
    local _, life = lifetimes(id)
    if redis.call('TTL', key_of(id, 'job')) < 0.9 * life then
        expire(id, life)
    end
    return life
end

-- When a queued job's deadline and its limit in the queue are over (0: no deadline).
local function due_times(id)
    local record = redis.call('HMGET', key_of(id, 'job'), 'deadline_ms', 'queued_ms', 'created_ms', 'queue_limit_s')
    local deadline, since = number(record[1] or 0), number(record[2] or record[3])
    local limit_s = number(record[4] or 86400)
    if not (deadline and since and limit_s) then
        error('no time')
    end
    return deadline, since + 1000 * limit_s
end

-- Have the reaper look at a queued job at the time ``again``, or when it is overdue if that is sooner.
local function enqueue(id, again)
    local deadline, limit = due_times(id)
    local look = math.min(again, limit)
    local _, life = lifetimes(id)
    redis.call('ZADD', key('queued'), deadline > 0 and math.min(look, deadline) or look, id)
    extend_ttl('queued', life)
end

-- Write a new job's record. Returns 1, or if the id is taken 0 where the request is the same and -1 where it is not; -3 if
-- too many jobs wait, and with ``fail_fast`` ('1') -4 if no worker serves the queue.
local function create(id, request, digest, queue, priority, time_left, ttl, limit, republish_ms, fail_fast, tenant, trace, packed)
    local job, now = key_of(id, 'job'), now_ms()
    if redis.call('EXISTS', job) == 1 then
        local known = redis.call('HGET', job, 'digest')
        return (not known or known == digest) and 0 or -1
    end
    local most = tonumber(redis.pcall('GET', key('max_queued')))
    if most and redis.call('ZCARD', key('queued')) >= most then
        return -3
    elseif fail_fast == '1' and not is_served(queue, now) then
        return -4
    end
    local deadline = tonumber(time_left)
    -- Epochs begin at the time: should Redis lose its data and the id come again, the old job's owner stays fenced.
    redis.call('HSET', job, 'schema', 2, 'request', request, 'digest', digest, 'state', 'queued', 'queue', queue,
        'priority', priority, 'created_ms', now, 'queued_ms', now, 'deadline_ms', deadline > 0 and now + deadline or 0,
        'ttl_s', ttl, 'queue_limit_s', limit, 'epoch', now, 'attempt', 0, 'published', 0)
    -- Without these a record is of at most 16 fields; with more, Redis makes its table twice as large.
    for name, value in pairs({tenant = tenant, trace = trace, packed = packed ~= '0' and packed or ''}) do
        if value ~= '' then
            redis.call('HSET', job, name, value)
        end
    end
    redis.call('DEL', key_of(id, 'log'), key_of(id, 'messages')) -- a job of this id may have left them
    expire(id, ttl + limit)
    enqueue(id, now + tonumber(republish_ms))
    publish_queued(id, queue, redis.call('ZCARD', key('queued')), now)
    return 1
end

-- Take a job off the lists of those that wait and run.
local function forget(id)
    redis.call('ZREM', key('queued'), id)
    redis.call('ZREM', key('running'), id)
end

-- Put a job into a terminal state; ``event`` is the JSON of its terminal event. Recorded messages that are not answered
-- ``answer_ms`` from now are published again.
local function finish(id, state, event, answer_ms)
    local now = now_ms()
    redis.call('HSET', key_of(id, 'job'), 'state', state, 'finished_ms', now, 'end', event, 'published', 0)
    forget(id)
    local ttl = lifetimes(id)
    expire(id, ttl)
    if redis.call('EXISTS', key_of(id, 'messages')) == 1 then
        redis.call('ZADD', key('unanswered'), now + answer_ms, id)
        extend_ttl('unanswered', ttl)
    end
end

-- End a job in place of an owner: the event goes behind the last one in the log, at the same number of tokens. Without a
-- usable log it is in the record and on the channel only.
local function end_alone(id, state, event, answer_ms)
    guarded(function()
        local last = redis.call('XREVRANGE', key_of(id, 'log'), '+', '-', 'COUNT', 1)
        local n, k = 0, 0
        if last[1] then
            n, k = string.match(last[1][1], '(%d+)-(%d+)')
        end
        redis.call('XADD', key_of(id, 'log'), n .. '-' .. (k + 1), 'e', event)
    end)
    finish(id, state, event, answer_ms)
    publish(id, event)
    guarded(function()
        if is_unserved(queue_of(unpack(redis.call('HMGET', key_of(id, 'job'), 'queue', 'schema')))) then
            local ttl = lifetimes(id)
            redis.call('ZADD', key('unanswered'), now_ms() + answer_ms, id) -- its own message is not read by anybody
            extend_ttl('unanswered', ttl)
        end
    end)
    return true
end

-- End a job that cannot be used, as far as its keys allow.
local function give_up(id)
    local event = error_event('LOG_DAMAGED', 'the job cannot be read in Redis any more; submit it under another id')
    guarded(end_alone, id, 'failed', event, 0)
    forget(id)
end

-- Whether a running job has an owner whose lease has not run out.
local function has_owner(id, now)
    return tonumber(redis.call('ZSCORE', key('running'), id) or 0) > now
end

-- End a job that nobody works on if it is overdue: its time is over, or it is to be cancelled. Returns whether it was.
local function end_if_overdue(id, now)
    local record = redis.call('HMGET', key_of(id, 'job'), 'state', 'queue', 'schema', 'cancel')
    local is_queued = record[1] == 'queued'
    if not is_queued and (record[1] ~= 'running' or has_owner(id, now)) then
        return false
    end
    local deadline, limit = due_times(id)
    if record[4] then
        end_alone(id, 'cancelled', error_event('CANCELLED', 'cancelled'), 0)
    elseif deadline > 0 and deadline <= now then
        local where = is_queued and 'while the job was queued' or 'before the job was finished'
        end_alone(id, 'expired', error_event('EXPIRED', 'the deadline passed ' .. where), 0)
    elseif is_queued and limit <= now and is_served(queue_of(record[2], record[3]), now) then
        end_alone(id, 'expired', error_event('EXPIRED', 'no worker took the job within its queue limit'), 0)
    elseif is_queued and limit <= now then
        local event = error_event('MODEL_NOT_SERVED', 'no worker served the model within the queue limit')
        end_alone(id, 'failed', event, 0)
    else
        return false
    end
    return true
end

-- Whether a job runs and a lease, its epoch and token, is the one that it runs under.
local function is_owned(id, epoch, token)
    local record = redis.call('HMGET', key_of(id, 'job'), 'epoch', 'token', 'state')
    return record[1] == epoch and record[2] == token and record[3] == 'running'
end

-- Note that a worker has reached Redis. If none had for half a lease, Redis was away: nobody could renew (a worker does
-- three times a lease, also without jobs), so that each lease that had not run out before then begins anew. So it does
-- after a clock that was ahead was put back; then all that was to happen at a time it had not reached happens earlier by
-- as much.
local function note_contact(now, lease)
    local before = tonumber(redis.pcall('GET', key('contact')))
    if before and now < before - 1000 then
        for _, name in ipairs({'queued', 'running', 'unanswered'}) do
            local later = redis.call('ZRANGEBYSCORE', key(name), before, '+inf', 'WITHSCORES')
            for at = 1, #later, 2 do
                redis.call('ZADD', key(name), later[at + 1] - before + now, later[at])
            end
        end
    end
    if not before or now < before or now - before > math.max(lease / 2, 100) then -- threads may stand still for a moment
        local since = before and '(' .. math.min(before, now) or '-inf'
        for _, id in ipairs(redis.call('ZRANGEBYSCORE', key('running'), since, now + lease)) do
            redis.call('ZADD', key('running'), now + lease, id)
        end
    end
    redis.pcall('SET', key('contact'), now, 'EX', 3600)
end

-- A job's owner is taken for dead, and held against the job. Its token is kept, in case it is heard of again.
local function count_loss(id)
    local job = key_of(id, 'job')
    redis.call('HINCRBY', job, 'losses', 1)
    redis.call('HSET', job, 'lost_token', redis.call('HGET', job, 'token') or '')
end

-- A lease that is not the job's any more was named: if its loss was the last to be counted, its owner had not died.
local function forgive(id, token)
    local job = key_of(id, 'job')
    if token ~= '' and redis.call('HGET', job, 'lost_token') == token then
        redis.call('HINCRBY', job, 'losses', -1)
        redis.call('HSET', job, 'lost_token', '')
    end
end

-- Put a running job back into the queue; its owner can write nothing any more.
local function requeue(id, republish_ms)
    local job, now = key_of(id, 'job'), now_ms()
    local record = redis.call('HMGET', job, 'queue', 'schema')
    redis.call('HINCRBY', job, 'epoch', 1)
    redis.call('HSET', job, 'state', 'queued', 'owner', '', 'token', '', 'queued_ms', now, 'published', 0)
    redis.call('ZREM', key('running'), id)
    enqueue(id, now + republish_ms)
    keep(id)
    publish_queued(id, queue_of(record[1], record[2]), 1, now)
end

-- What the message of a job says: id, queue, priority, 1 if its lease had run out, recorded messages, tenant ('': none).
local function message_of(id, urgency, lease_lost)
    local record = redis.call('HMGET', key_of(id, 'job'), 'queue', 'schema', 'priority', 'tenant')
    local recorded = guarded(redis.call, 'HVALS', key_of(id, 'messages')) or {}
    local tenant = string.match(record[4] or '', '^%x+$') or ''
    return {id, queue_of(record[1], record[2]), math.max(0, math.min(record[3], 9) - urgency), lease_lost, recorded, tenant}
end
