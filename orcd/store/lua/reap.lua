-- Find jobs that nobody works on and say which messages to publish again.
-- Running jobs whose lease ran out go back to the queue, or are ended if their deadline has passed. Queued jobs that are
-- overdue are ended. The message of a queued job may be lost, or stuck behind others: it is published again when its list
-- is empty or was so after it had been sent, or after a long time, each time later and one priority more urgent, so nobody
-- starves and a deep backlog is not doubled. Ended jobs whose messages nobody has answered come up too, each time later.
-- Publishing too often is harmless: a claim decides who runs a job.
-- KEYS: none
-- ARGV: at most so many jobs of each kind, ms until the first re-publish, ms until one though the list was not empty,
--       lease ms
-- Returns {job id, queue, priority, 1 if its lease had run out or 2 if all its messages go to that queue, recorded messages,
-- tenant} for every job to publish.
mend_shared_keys()
local most, republish_ms, long = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now = now_ms()
note_contact(now, tonumber(ARGV[4]))
local sending_ms = 1000 -- at most so long after its job was stored a message is sent
-- Whether the list of a priority holds no message that was sent by the time ``sent``; push.lua notes when it was empty. A
-- note of a time to come is from a clock that was ahead.
local function holds_none(queue, priority, sent)
    local list = prefix .. (priority == 0 and queue or queue .. ':' .. priority)
    local length, noted = redis.pcall('LLEN', list), redis.pcall('HGET', key('emptied'), list)
    local emptied = tonumber(noted) or 0
    return length == 0 or type(length) == 'table' or (emptied <= now and emptied > sent + sending_ms)
end
local function times_published(id)
    return math.min(redis.call('HINCRBY', key_of(id, 'job'), 'published', 1), 10)
end
local function of_running(id)
    local state, schema = unpack(redis.call('HMGET', key_of(id, 'job'), 'state', 'schema'))
    if state ~= 'running' then
        check_state(state, schema)
        redis.call('ZREM', key('running'), id)
    elseif is_newer(schema) then
        redis.call('ZADD', key('running'), now + 1000, id) -- so that it does not stand before others
    elseif not end_if_overdue(id, now) then
        count_loss(id)
        requeue(id, republish_ms)
        return message_of(id, 0, 1)
    end
    return false
end
local function of_queued(id)
    local state, schema, queue, since, created, times, priority = unpack(redis.call('HMGET', key_of(id, 'job'), 'state',
        'schema', 'queue', 'queued_ms', 'created_ms', 'published', 'priority'))
    if state ~= 'queued' then
        check_state(state, schema)
        redis.call('ZREM', key('queued'), id)
    elseif is_newer(schema) then
        redis.call('ZADD', key('queued'), now + republish_ms, id)
    elseif not end_if_overdue(id, now) then
        local waited = now - (since or created)
        -- The last look, and what was sent at it, was so long ago or longer.
        local sent = math.max(since or created, redis.call('ZSCORE', key('queued'), id) - republish_ms)
        times = math.min(times or 0, 10)
        local list = math.max(0, math.min(priority, 9) - times)
        if not holds_none(queue_of(queue, schema), list, sent) and waited < long * 2 ^ times then
            enqueue(id, now + republish_ms)
        else
            local published = times_published(id)
            enqueue(id, now + republish_ms * 2 ^ published)
            return message_of(id, published, 0)
        end
    end
    return false
end
local function of_unanswered(id)
    local queue, schema = unpack(redis.call('HMGET', key_of(id, 'job'), 'queue', 'schema'))
    local unserved = queue and is_unserved(queue_of(queue, schema))
    local num_recorded = redis.call('HLEN', key_of(id, 'messages'))
    if num_recorded == 0 then
        redis.call('ZREM', key('unanswered'), id)
    else
        redis.call('ZADD', key('unanswered'), now + republish_ms * 2 ^ times_published(id), id)
    end
    if unserved then
        local message = message_of(id, 0, 2)
        message[2] = 'orcd' -- whoever reads that can answer for an ended job
        return message
    end
    return num_recorded > 0 and message_of(id, 0, 0)
end
local found = {}
local function look_at(list, step)
    for _, id in ipairs(redis.call('ZRANGEBYSCORE', key(list), '-inf', now, 'LIMIT', 0, most)) do
        local is_id = string.match(id, '^[%w_.:-]+$')
        local message = is_id and guarded(step, id)
        if not is_id then
            redis.call('ZREM', key(list), id)
        elseif message == nil then
            redis.call('ZREM', key(list), id)
            if list ~= 'unanswered' then
                give_up(id)
            end
        end
        found[#found + 1] = message or nil
    end
end
look_at('running', of_running)
look_at('queued', of_queued)
look_at('unanswered', of_unanswered)
return found
