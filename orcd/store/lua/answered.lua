-- Note that a recorded message was answered. The last one of an ended job leaves nothing to do.
-- KEYS: none
-- ARGV: task id, JSON of the message, key of the result that was stored ('': none), the job that the message is recorded
--       for, then every job that it is about
-- Returns nothing. What is recorded under that task id by now, and is another message, is left: a sender that was told of
-- an error sends a chord again, whose tasks have the same ids and are to be counted for another one. The message stays, too,
-- where Redis has come back from an older snapshot since it was answered, and knows nothing of the result, or not of the end
-- of its jobs, after which links are followed: then it is published and answered again.
mend_shared_keys()
local task_id, message, result, id = unpack(ARGV)
local function is_forgotten()
    for at = 5, #ARGV do
        local state = guarded(redis.call, 'HGET', key_of(ARGV[at], 'job'), 'state')
        if state == 'queued' or state == 'running' then
            return true
        end
    end
    return result ~= '' and redis.call('EXISTS', result) == 0
end
local function remove()
    if redis.call('HGET', key_of(id, 'messages'), task_id) == message then
        redis.call('HDEL', key_of(id, 'messages'), task_id)
    end
    if redis.call('EXISTS', key_of(id, 'messages')) == 0 then
        redis.call('ZREM', key('unanswered'), id)
    end
end
if not is_forgotten() then
    guarded(remove)
end
