-- Count a part of the jobs that are to be run before a job: of its queue, or of that for any model, those that are more
-- urgent, or as urgent and older.
-- KEYS: none
-- ARGV: job id, cursor ('0' at first)
-- Returns {next cursor ('0' after the last part, or if the job does not wait), how many were found}.
local fields = {'state', 'schema', 'queue', 'priority', 'queued_ms', 'created_ms'}
local function read(id)
    local record = redis.call('HMGET', key_of(id, 'job'), unpack(fields))
    if record[1] == 'queued' then
        return {queue_of(record[3], record[2]), number(record[4], 0), number(record[5] or record[6], 0)}
    end
end
local own = guarded(read, ARGV[1])
if not own then
    return {'0', 0}
end
local num = 0
local found = redis.call('ZSCAN', key('queued'), ARGV[2], 'COUNT', 200)
for at = 1, #found[2], 2 do
    local other = found[2][at] ~= ARGV[1] and guarded(read, found[2][at])
    if other and (other[1] == own[1] or other[1] == 'orcd')
        and (other[2] < own[2] or other[2] == own[2] and other[3] < own[3]) then
        num = num + 1
    end
end
return {found[1], num}
