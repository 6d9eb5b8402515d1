-- Write down what came with messages, before the jobs are claimed: requests, and messages that somebody must answer.
-- KEYS: none
-- ARGV: how many arguments follow for a request, then for every arrival: job id, task id of the message ('': none),
--       JSON of the message, 1 if a request follows or 0, and that request as the submit script takes it
-- Returns for every arrival the submit script's answer; 0 for one without a request. One that is refused because too many
-- jobs wait gets an error event all the same, in its log and on its channel: its sender may know of no other way.
mend_shared_keys()
local answers = {}
local function record(id, task_id, message)
    local state, schema = unpack(redis.call('HMGET', key_of(id, 'job'), 'state', 'schema'))
    if not state or is_newer(schema) then
        return 0
    end
    redis.call('HSET', key_of(id, 'messages'), task_id, message)
    local ttl, life = lifetimes(id)
    if state == 'queued' or state == 'running' then
        redis.call('EXPIRE', key_of(id, 'messages'), life)
    else
        expire(id, ttl)
        redis.call('ZADD', key('unanswered'), now_ms() + 10000, id)
        extend_ttl('unanswered', ttl)
    end
    return 0
end
local function refuse(id, ttl)
    local log = key_of(id, 'log')
    local event = error_event('QUEUE_FULL', 'too many jobs wait; send it again later', true)
    redis.call('DEL', log)
    redis.call('XADD', log, '0-1', 'e', event)
    redis.call('EXPIRE', log, math.max(1, math.floor(math.min(number(ttl, 86400), 1e9))))
    publish(id, event)
end
local at = 2
while at <= #ARGV do
    local id, task_id, message, has_request = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3] == '1'
    local answer = 0
    at = at + 4
    if has_request then
        answer = guarded(create, unpack(ARGV, at, at + ARGV[1] - 1)) or -2
        if answer == -3 then
            guarded(refuse, id, ARGV[at + 6])
        end
        at = at + ARGV[1]
    end
    if answer >= 0 and task_id ~= '' and not guarded(record, id, task_id, message) then
        answer = -2
    end
    answers[#answers + 1] = answer
end
return answers
