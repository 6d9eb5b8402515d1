-- Delete a job and all that is kept of it; if it runs, its owner can write nothing any more and drops it.
-- KEYS: none
-- ARGV: job id
-- Returns 1, or 0 if there was no such job.
local id = ARGV[1]
forget(id)
redis.call('ZREM', key('unanswered'), id)
redis.call('DEL', key_of(id, 'log'), key_of(id, 'messages'))
return redis.call('DEL', key_of(id, 'job'))
