-- Look at a job, for whoever waits for it: one that is overdue and that nobody works on is ended; one that is missing
-- from the lists of jobs that wait or run is put there again.
-- KEYS: none
-- ARGV: job id
-- Returns {state, place in the queue from 0 (-1: not queued), 1 if somebody serves its queue or 0, JSON of the terminal
-- event or '', why it waits or ''}; state is '' if unknown, 'newer' if a newer version wrote the record, 'damaged' if it
-- cannot be used.
mend_shared_keys()
local id, now = ARGV[1], now_ms()
local function repair(state)
    if not end_if_overdue(id, now) and not redis.call('ZSCORE', key(state), id) then
        redis.call('ZADD', key(state), now + 10000, id)
        local _, life = lifetimes(id)
        extend_ttl(state, life)
    end
end
local function look()
    local job = key_of(id, 'job')
    local state, schema = unpack(redis.call('HMGET', job, 'state', 'schema'))
    if not state then
        return {'', -1, 1, '', ''}
    elseif is_newer(schema) then
        return {'newer', -1, 1, '', ''}
    end
    check_state(state, schema)
    if state == 'queued' or state == 'running' then
        pcall(repair, state) -- a Redis that takes no writes can be read all the same
    end
    local record = redis.call('HMGET', job, 'state', 'queue', 'end')
    local is_queued = record[1] == 'queued'
    if not is_queued then
        return {record[1], -1, 1, record[3] or '', ''}
    end
    local queue, rank = queue_of(record[2], schema), redis.call('ZRANK', key('queued'), id) or -1
    local served = is_served(queue, now)
    return {record[1], rank, served and 1 or 0, '', reason_to_wait(queue, now, served)}
end
return guarded(look) or {'damaged', -1, 1, '', ''}
