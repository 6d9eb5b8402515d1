-- Give running jobs back to the queue at once: their worker shuts down, or their log is not as it left it. One that is
-- overdue is ended.
-- KEYS: none
-- ARGV: ms until the first re-publish, then for every job: job id, epoch, token
-- Returns for every job that goes on its message: {job id, queue, priority, 0, recorded messages, tenant}; the caller publishes.
mend_shared_keys()
local function release(id, epoch, token)
    if is_owned(id, epoch, token) then
        redis.call('HINCRBY', key_of(id, 'job'), 'attempt', -1) -- leaving in good order is nobody's failure
        requeue(id, tonumber(ARGV[1]))
        return not end_if_overdue(id, now_ms()) and message_of(id, 0, 0) or nil
    end
    forgive(id, token)
end
local messages = {}
for at = 2, #ARGV, 3 do
    messages[#messages + 1] = guarded(release, ARGV[at], ARGV[at + 1], ARGV[at + 2])
end
return messages
