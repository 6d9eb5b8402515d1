-- Note that a recorded message was answered for some of its jobs. The last one of an ended job leaves nothing to do.
-- KEYS: none
-- ARGV: task id, then every job's id
-- Returns nothing.
check_shared_keys()
local function answered(id)
    redis.call('HDEL', key_of(id, 'messages'), ARGV[1])
    if redis.call('EXISTS', key_of(id, 'messages')) == 0 then
        redis.call('ZREM', key('unanswered'), id)
    end
end
for at = 2, #ARGV do
    guarded(answered, ARGV[at])
end
