-- Note in a job's record what a gateway wants to know of it later.
-- KEYS: none
-- ARGV: job id, note
-- Returns 1, or 0 if there is no such job.
local job = key_of(ARGV[1], 'job')
if redis.call('EXISTS', job) == 0 then
    return 0
end
redis.call('HSET', job, 'note', ARGV[2])
return 1
