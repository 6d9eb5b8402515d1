-- Read the last heartbeats of the workers that are alive: some microseconds a worker.
-- KEYS: none
-- ARGV: none
-- Returns the time, then for every worker {name, time of its last heartbeat, its fields and their values}.
local found = {now_ms()}
local seen = redis.call('ZRANGE', key('workers'), 0, -1, 'WITHSCORES')
for at = 1, #seen, 2 do
    local heartbeat = guarded(redis.call, 'HGETALL', key('worker:{' .. seen[at] .. '}'))
    if heartbeat and #heartbeat > 0 then
        found[#found + 1] = {seen[at], seen[at + 1], heartbeat}
    end
end
return found
