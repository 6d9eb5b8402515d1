-- Count a part of what is in the queues. All of it takes many calls, none of which keeps Redis for more than a moment.
-- KEYS: none
-- ARGV: what to count ('queued' or 'running': jobs in that state; 'messages': those in Celery's lists), cursor ('0' at first)
-- Returns {time, next cursor ('0' after the last part), then for every queue and priority found {queue, priority, how
-- many, since when the oldest is there}}. What changes meanwhile may be counted or not.
local what, now = ARGV[1], now_ms()
local rows, row_of = {}, {}
local function count(queue, priority, num, since)
    local name = queue .. ':' .. priority
    local row = row_of[name]
    if not row then
        row = {queue, priority, 0, since}
        row_of[name] = row
        rows[#rows + 1] = row
    end
    row[3] = row[3] + num
    row[4] = math.min(row[4], since)
end
local function count_job(id)
    local record = redis.call('HMGET', key_of(id, 'job'), 'state', 'schema', 'queue', 'priority', 'queued_ms', 'created_ms')
    if record[1] == what then
        local since = number(record[5] or record[6], now)
        count(queue_of(record[3], record[2]), math.floor(number(record[4], 0)), 1, since)
    end
end
local function count_messages(list)
    local queue, priority = string.match(string.sub(list, #prefix + 1), '^([^:]+):?(%d?)$')
    count(queue_of(queue, 2), tonumber(priority) or 0, redis.call('LLEN', list), now)
end
local found
if what == 'messages' then
    found = redis.call('SCAN', ARGV[2], 'MATCH', prefix .. 'orcd*', 'COUNT', 1000, 'TYPE', 'list')
    for _, list in ipairs(found[2]) do
        guarded(count_messages, list)
    end
else
    found = redis.call('ZSCAN', key(what), ARGV[2], 'COUNT', 200)
    for at = 1, #found[2], 2 do
        guarded(count_job, found[2][at])
    end
end
return {now, found[1], unpack(rows)}
