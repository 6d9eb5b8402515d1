-- Append the events of many jobs to their token logs and publish them; end jobs whose last event is among them.
-- KEYS: orcd:running, then for every job its record and its log
-- ARGV: ttl s, then for every job: job id, epoch, final state ('' while it goes on), number of events,
--       and for every event: n, k, JSON
-- Returns for every job {status, cancel, listeners}: status 1 is done, 0 fenced (another owner, or the record is
-- gone: nothing was written); cancel is 1 when somebody wants the job cancelled; listeners got the last event.
-- A repeated call is harmless: Redis refuses an entry id that is not above the last, such an event is not published
-- again, and nothing follows the terminal event.
local answers = {}
local at = 2
local ttl = ARGV[1]
local now = now_ms()
for key = 2, #KEYS, 2 do
    local job, log = KEYS[key], KEYS[key + 1]
    local id, epoch, final, count = ARGV[at], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
    at = at + 4
    local record = redis.call('HMGET', job, 'epoch', 'cancel', 'first_token_ms', 'state')
    if record[1] ~= epoch then
        answers[#answers + 1] = {0, 0, 0}
    elseif record[4] ~= 'running' then
        answers[#answers + 1] = {1, 0, 0}
    else
        local listeners = 0
        for event = 0, count - 1 do
            local n, k, json = ARGV[at + 3 * event], ARGV[at + 3 * event + 1], ARGV[at + 3 * event + 2]
            local added = redis.pcall('XADD', log, n .. '-' .. k, 'e', json)
            if type(added) == 'table' and added.err then
                if not string.find(added.err, 'equal or smaller', 1, true) then
                    return redis.error_reply(added.err)
                end
            else
                listeners = publish(id, json)
            end
        end
        redis.call('EXPIRE', log, ttl)
        if not record[3] and count > 0 and ARGV[at + 3 * count - 3] ~= '0' then
            redis.call('HSET', job, 'first_token_ms', now)
        end
        if final ~= '' then
            finish(job, final, now, ttl)
            redis.call('ZREM', KEYS[1], id)
        end
        answers[#answers + 1] = {1, tonumber(record[2] or 0), listeners}
    end
    at = at + 3 * count
end
return answers
