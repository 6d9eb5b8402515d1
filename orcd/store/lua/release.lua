-- Give running jobs back to the queue at once: their worker shuts down, or their log is not as it left it.
-- KEYS: none
-- ARGV: ms until the first re-publish, then for every job: job id, epoch, token
-- Returns for every job that was ours its message: {job id, queue, priority, 0, recorded messages}; the caller publishes.
check_shared_keys()
local function release(id, epoch, token)
    if is_owned(id, epoch, token) then
        redis.call('HINCRBY', key_of(id, 'job'), 'attempt', -1) -- leaving in good order is nobody's failure
        requeue(id, tonumber(ARGV[1]))
        return message_of(id, 0, 0)
    end
    forgive(id, token)
end
local messages = {}
for at = 2, #ARGV, 3 do
    messages[#messages + 1] = guarded(release, ARGV[at], ARGV[at + 1], ARGV[at + 2])
end
return messages
