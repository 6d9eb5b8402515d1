-- Renew the leases of a worker's jobs, and note that it serves its queues.
-- KEYS: none
-- ARGV: lease ms, 1 if it takes jobs now or 0, number of queues and their names, then for every job: job id, epoch, token
-- Returns for every job 0 (lost: another owner, ended, or gone), 1 (renewed) or 2 (renewed; cancellation is wanted).
mend_shared_keys()
local now, lease, num_queues = now_ms(), tonumber(ARGV[1]), tonumber(ARGV[3])
note_contact(now, lease)
for _, name in ipairs(ARGV[2] == '1' and {'served', 'ready'} or {'served'}) do
    mend(name)
    for at = 4, num_queues + 3 do
        redis.pcall('ZADD', key(name), now, ARGV[at])
    end
    redis.pcall('ZREMRANGEBYSCORE', key(name), '-inf', now - 3600000)
    redis.pcall('EXPIRE', key(name), 3600)
end
local function renew(id, epoch, token)
    if not is_owned(id, epoch, token) then
        forgive(id, token)
        return 0
    end
    redis.call('ZADD', key('running'), now + lease, id)
    extend_ttl('running', keep(id))
    return redis.call('HEXISTS', key_of(id, 'job'), 'cancel') == 1 and 2 or 1
end
local answers = {}
for at = num_queues + 4, #ARGV, 3 do
    answers[#answers + 1] = guarded(renew, ARGV[at], ARGV[at + 1], ARGV[at + 2]) or 0
end
return answers
