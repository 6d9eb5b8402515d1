-- Write a new job's record, and put its message into its queue's list, of which workers are told if it was empty, as
-- push.lua does. A job of the same id and the same request is left alone, so submitting twice is harmless.
-- KEYS: none
-- ARGV: job id, request JSON, its digest, queue, priority, time to deadline ms (0: none), ttl s, queue limit s,
--       ms until the first re-publish, 1 to refuse it if no worker serves its queue or 0, tenant ('': none),
--       traceparent ('': none), what may be packed in its log (0, or as the field `packed`), message ('': none is sent)
-- Returns 2 if created, 1 if its message is still to be sent, as none was given or its list cannot be used, 0 if it was
-- there; nothing is written if another request has the id (-1), its key cannot be used (-2), too many jobs wait (-3), or no
-- worker serves its queue and that was not wanted (-4).
mend_shared_keys()
local function send(queue, priority, message)
    local list = prefix .. queue .. (priority == '0' and '' or ':' .. priority)
    if redis.call('LLEN', list) == 0 then
        redis.call('HSET', key('emptied'), list, now_ms())
        redis.call('EXPIRE', key('emptied'), 3600)
        redis.call('PUBLISH', key('wake'), list)
    end
    redis.call('LPUSH', list, message)
end
local message = table.remove(ARGV)
local answer = guarded(create, unpack(ARGV)) or -2
if answer == 1 and message ~= '' and pcall(send, ARGV[4], ARGV[5], message) then
    return 2
end
return answer
