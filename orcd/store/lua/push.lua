-- Put a message into a queue. Where its list was empty, note that, so that reap.lua sees whose messages are missing, and
-- tell the workers, who may not be looking: those that have room empty every list before they wait.
-- Messages of a tenant wait in a list of its own, behind the turns of the tenants that wait, and a ticket for each stands in
-- the queue's list: take.lua gives for a ticket the next message of the tenant whose turn it is.
-- KEYS: the queue's lists: that of the message's priority, then those that it may go to if a key before has another type
-- ARGV: message, orcd:wake, orcd:emptied, time to live of its notes in s, tenant ('': none)
-- Returns the keys that had another type and were deleted, or the error if none of the lists can be used.
local message, wake, emptied, notes_ttl, tenant = unpack(ARGV)
local deleted = {}

local function delete_unless(key, kind)
    if redis.call('TYPE', key).ok ~= kind and redis.call('DEL', key) == 1 then
        deleted[#deleted + 1] = key
    end
end

local function note_empty(list)
    local time = redis.call('TIME')
    delete_unless(emptied, 'hash')
    redis.call('HSET', emptied, list, time[1] * 1000 + math.floor(time[2] / 1000))
    redis.call('EXPIRE', emptied, notes_ttl)
end

local function put_in_tenants_list(list, num_tickets)
    local turns, own = list .. ':tenants', list .. ':tenant:' .. tenant
    delete_unless(turns, 'zset')
    delete_unless(own, 'list')
    if num_tickets == 0 then -- their tickets were deleted with the queue's list
        for _, other in ipairs(redis.call('ZRANGE', turns, 0, -1)) do
            redis.call('DEL', list .. ':tenant:' .. other)
        end
        redis.call('DEL', turns, own)
    end
    if not redis.call('ZSCORE', turns, tenant) then
        local last = redis.call('ZRANGE', turns, -1, -1, 'WITHSCORES')[2]
        redis.call('ZADD', turns, (last or 0) + 1, tenant)
    end
    redis.call('LPUSH', own, message)
end

local length
for _, list in ipairs(KEYS) do
    length = redis.pcall('LLEN', list)
    if type(length) == 'number' then
        if tenant ~= '' then
            put_in_tenants_list(list, length)
        end
        redis.call('LPUSH', list, tenant == '' and message or 'tenant')
        if length == 0 then
            note_empty(list)
            redis.call('PUBLISH', wake, list)
        end
        return deleted
    elseif string.sub(length.err, 1, 9) ~= 'WRONGTYPE' then
        break
    end
end
return length
