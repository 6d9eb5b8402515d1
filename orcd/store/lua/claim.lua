-- Take queued jobs: a new epoch and the owner's token each, which all later writes name. Whoever held one before can
-- write nothing to it any more.
-- KEYS: none
-- ARGV: owner, model, fingerprint, lease ms, the queue of the model's jobs, then for every job: id, token
--       (of which the first 8 characters name the process)
-- Returns for every job {status, now, fingerprint of the last owner, record fields, log entries or nil where they cannot
-- be read, recorded messages}; all but the status come with claimed only. Status is claimed, unknown (no record), busy
-- (another owner's lease runs, or it is for another model), finished, unreadable (of a newer version: left alone) or
-- damaged (ended if possible). A repeated call with the same tokens, after a lost answer, finds the same as before.
mend_shared_keys()
local owner, model, fingerprint, lease, own_queue = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local now = now_ms()
note_contact(now, lease)
local names = {'request', 'epoch', 'token', 'attempt', 'losses', 'created_ms', 'started_ms', 'first_token_ms', 'deadline_ms',
    'cancel', 'trace', 'packed'}
local function read(job)
    local fields = {}
    for index, value in ipairs(redis.call('HMGET', job, unpack(names))) do
        if value then
            fields[#fields + 1] = names[index]
            fields[#fields + 1] = value
        end
    end
    return fields
end
local function claim(id, token)
    local job = key_of(id, 'job')
    local fields = redis.call('HMGET', job, 'state', 'schema', 'fingerprint', 'queue', 'token', 'packed')
    local state, schema, before, queue, known, packed = unpack(fields)
    local lease_end = state == 'running' and redis.call('ZSCORE', key('running'), id)
    local is_leased = lease_end and tonumber(lease_end) > now
    if not state then
        forget(id)
        return {'unknown'}
    elseif is_newer(schema) then
        return {'unreadable'}
    end
    check_state(state, schema)
    if state ~= 'queued' and state ~= 'running' then
        return {'finished'}
    elseif is_leased and known ~= token then
        return {'busy'}
    end
    queue = queue_of(queue, schema)
    if queue ~= 'orcd' and queue ~= own_queue then
        return {'busy'} -- it came to the wrong queue
    end
    if not is_leased then
        if state == 'running' then
            count_loss(id)
        end
        local lost = redis.call('HGET', job, 'lost_token') or ''
        if string.sub(lost, 1, 8) == string.sub(token, 1, 8) then
            forgive(id, lost) -- the process that lost it claims it again
        end
        redis.call('HINCRBY', job, 'attempt', 1)
        redis.call('HINCRBY', job, 'epoch', 1)
        redis.call('HSET', job, 'state', 'running', 'owner', owner, 'token', token, 'model', model,
            'fingerprint', fingerprint)
        if packed then
            redis.call('HSET', job, 'schema', packed == '1' and 3 or 4) -- older workers could not go on from its log
        end
        redis.call('HSETNX', job, 'started_ms', now)
    end
    redis.call('ZREM', key('queued'), id)
    redis.call('ZADD', key('running'), now + lease, id)
    local _, life = lifetimes(id)
    extend_ttl('running', life)
    expire(id, life)
    local log = guarded(redis.call, 'XRANGE', key_of(id, 'log'), '-', '+') or false
    local messages = guarded(redis.call, 'HVALS', key_of(id, 'messages')) or {}
    return {'claimed', now, before or '', read(job), log, messages}
end
local answers = {}
for at = 6, #ARGV, 2 do
    local answer = guarded(claim, ARGV[at], ARGV[at + 1])
    if not answer then
        give_up(ARGV[at])
    end
    answers[#answers + 1] = answer or {'damaged'}
end
return answers
