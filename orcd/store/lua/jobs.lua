-- List a part of the jobs in one state. All of them take many calls, none of which keeps Redis for more than a moment.
-- KEYS: none
-- ARGV: the state, cursor ('0' at first)
-- Returns {next cursor ('0' after the last part), time, then for every job found {id, queue, model, owner, priority, attempt,
-- created_ms, started_ms, finished_ms, code of its error or finish reason}}, with '' for what there is none of. What
-- changes meanwhile may be listed or not, or twice.
local state = ARGV[1]
local rows = {}
local function add(id)
    local record = redis.call('HMGET', key_of(id, 'job'), 'state', 'schema', 'queue', 'model', 'owner', 'priority', 'attempt',
        'created_ms', 'started_ms', 'finished_ms', 'end')
    if record[1] == state and not is_newer(record[2]) then
        local ended, event = pcall(cjson.decode, record[11] or '')
        local row = {id, queue_of(record[3], record[2])}
        for at = 4, 10 do
            row[#row + 1] = record[at] or ''
        end
        row[#row + 1] = ended and tostring(event.code or event.finish_reason or '') or ''
        rows[#rows + 1] = row
    end
end
local found
if state == 'queued' or state == 'running' then
    found = redis.call('ZSCAN', key(state), ARGV[2], 'COUNT', 200)
    for at = 1, #found[2], 2 do
        guarded(add, found[2][at])
    end
else
    local before, behind = key('{'), '}:job'
    found = redis.call('SCAN', ARGV[2], 'MATCH', before .. '*' .. behind, 'COUNT', 200, 'TYPE', 'hash')
    for _, name in ipairs(found[2]) do
        guarded(add, string.sub(name, #before + 1, -#behind - 1))
    end
end
return {found[1], now_ms(), unpack(rows)}
