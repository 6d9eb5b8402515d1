-- Note that a recorded message was answered for some of its jobs. The last one of an ended job leaves nothing to do.
-- KEYS: none
-- ARGV: task id, JSON of the message, then every job's id
-- Returns nothing. What is recorded under that task id by now, and is another message, is left: a sender that was told of
-- an error sends a chord again, whose tasks have the same ids and are to be counted for another one.
mend_shared_keys()
local function answered(id)
    if redis.call('HGET', key_of(id, 'messages'), ARGV[1]) == ARGV[2] then
        redis.call('HDEL', key_of(id, 'messages'), ARGV[1])
    end
    if redis.call('EXISTS', key_of(id, 'messages')) == 0 then
        redis.call('ZREM', key('unanswered'), id)
    end
end
for at = 3, #ARGV do
    guarded(answered, ARGV[at])
end
