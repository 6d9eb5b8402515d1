-- Note that what is recorded of a message was answered. The last answer of an ended job leaves nothing to do.
-- KEYS: none
-- ARGV: key of the result that was stored ('': none), how many records follow, of each the job that it is with, its task id
--       and its JSON, then every job that the message is about
-- Returns nothing. What is recorded under that task id by now, and is another message, is left: a sender that was told of
-- an error sends a chord again, whose tasks have the same ids and are to be counted for another one. The message stays, too,
-- where Redis has come back from an older snapshot since it was answered, and knows nothing of the result, or not of the end
-- of its jobs, after which links are followed: then it is published and answered again.
mend_shared_keys()
local result, jobs_at = ARGV[1], 3 + 3 * ARGV[2]
local function is_forgotten()
    for at = jobs_at, #ARGV do
        local state = guarded(redis.call, 'HGET', key_of(ARGV[at], 'job'), 'state')
        if state == 'queued' or state == 'running' then
            return true
        end
    end
    return result ~= '' and redis.call('EXISTS', result) == 0
end
local function remove(id, task_id, message)
    if redis.call('HGET', key_of(id, 'messages'), task_id) == message then
        redis.call('HDEL', key_of(id, 'messages'), task_id)
    end
    if redis.call('EXISTS', key_of(id, 'messages')) == 0 then
        redis.call('ZREM', key('unanswered'), id)
    end
end
if not is_forgotten() then
    for at = 3, jobs_at - 1, 3 do
        guarded(remove, unpack(ARGV, at, at + 2))
    end
end
