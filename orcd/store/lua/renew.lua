-- Renew the leases of a worker's jobs, and note that it serves its queues.
-- KEYS: none
-- ARGV: lease ms, number of queues and their names, then for every job: job id, epoch, token
-- Returns for every job 0 (lost: another owner, ended, or gone), 1 (renewed) or 2 (renewed; cancellation is wanted).
check_shared_keys()
local now, lease, num_queues = now_ms(), tonumber(ARGV[1]), tonumber(ARGV[2])
note_contact(now, lease)
for at = 3, num_queues + 2 do
    redis.pcall('ZADD', key('served'), now, ARGV[at])
end
redis.pcall('ZREMRANGEBYSCORE', key('served'), '-inf', now - 3600000)
redis.pcall('EXPIRE', key('served'), 3600)
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
for at = num_queues + 3, #ARGV, 3 do
    answers[#answers + 1] = guarded(renew, ARGV[at], ARGV[at + 1], ARGV[at + 2]) or 0
end
return answers
