-- Append the events of many jobs to their token logs and publish them; end jobs whose last event is among them.
-- KEYS: none
-- ARGV: ms until an ended job's messages must be answered, then for every job: job id, epoch, token, id of the entry that
--       the events follow ('0-0': none), final state ('' while it goes on), number of events, and for every event: entry
--       id, JSON
-- Returns for every job {status, cancel, listeners}: status is appended, fenced (not ours any more), conflict (the log
-- ends elsewhere) or damaged (its keys cannot be used); nothing was written unless it is appended. cancel is 1 when
-- somebody wants the job cancelled; listeners got the last event.
-- A repeated call is harmless: what it wrote the first time is found at the log's end and not written again.
mend_shared_keys()
local answer_ms = tonumber(ARGV[1])
local function append(id, epoch, token, after, final, count, first)
    local job, log = key_of(id, 'job'), key_of(id, 'log')
    local record = redis.call('HMGET', job, 'epoch', 'token', 'state', 'cancel', 'losses')
    if record[1] ~= epoch or record[2] ~= token or record[3] ~= 'running' then
        local ours = final ~= '' and record[1] == epoch and record[2] == token
        local ended = ours and redis.call('HGET', job, 'end') == ARGV[first + 2 * count - 1]
        forgive(id, token)
        return {ended and 'appended' or 'fenced', 0, 0}
    end
    local last = redis.call('XREVRANGE', log, '+', '-', 'COUNT', 1)
    local tail = last[1] and last[1][1] or '0-0'
    local new = tail == after and 0
    for event = 0, count - 1 do
        if tail == ARGV[first + 2 * event] then
            new = event + 1
        end
    end
    if not new then
        return {'conflict', 0, 0}
    end
    if record[5] and record[5] ~= '0' and count > 0
        and string.match(ARGV[first + 2 * count - 2], '%d+') ~= string.match(after, '%d+') then
        redis.call('HSET', job, 'losses', 0, 'lost_token', '') -- a job that goes on kills nobody
    end
    local listeners = 0
    for event = new, count - 1 do
        redis.call('XADD', log, ARGV[first + 2 * event], 'e', ARGV[first + 2 * event + 1])
        listeners = publish(id, ARGV[first + 2 * event + 1])
    end
    if string.sub(after, 1, 2) == '0-' and count > 0 and string.sub(ARGV[first + 2 * count - 2], 1, 2) ~= '0-' then
        redis.call('HSETNX', job, 'first_token_ms', now_ms())
    end
    if final ~= '' then
        finish(id, final, ARGV[first + 2 * count - 1], answer_ms)
    elseif tail == '0-0' then
        local _, life = lifetimes(id)
        redis.call('EXPIRE', log, life) -- from then on renewals keep it, with the record
    end
    return {'appended', record[4] and 1 or 0, listeners}
end
local answers = {}
local at = 2
while at <= #ARGV do
    local id, epoch, token, after, final, count = unpack(ARGV, at, at + 5)
    answers[#answers + 1] = guarded(append, id, epoch, token, after, final, tonumber(count), at + 6)
        or {'damaged', 0, 0}
    at = at + 6 + 2 * count
end
return answers
