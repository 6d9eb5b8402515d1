-- Renew the leases of a worker's jobs.
-- KEYS: orcd:running, then every job's record
-- ARGV: lease ms, ttl s, then for every job: job id, epoch
-- Returns for every job 0 (lost: another owner, ended, or gone), 1 (renewed) or 2 (renewed; cancellation is wanted).
local lease_end = now_ms() + tonumber(ARGV[1])
local answers = {}
for key = 2, #KEYS do
    local id, epoch = ARGV[2 * key - 1], ARGV[2 * key]
    local record = redis.call('HMGET', KEYS[key], 'epoch', 'state', 'cancel')
    if record[1] ~= epoch or record[2] ~= 'running' then
        answers[#answers + 1] = 0
    else
        redis.call('ZADD', KEYS[1], lease_end, id)
        redis.call('EXPIRE', KEYS[key], ARGV[2])
        answers[#answers + 1] = record[3] and 2 or 1
    end
end
extend_ttl(KEYS[1], ARGV[2])
return answers
