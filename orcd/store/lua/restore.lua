-- Renew the lease of a receiver that holds messages, and put those of receivers whose lease ran out back at the head of
-- their lists; with tags, only these of the receiver's own, whose lease stays as it is.
-- KEYS: orcd:receivers, orcd:ages. ARGV: what the keys of notes begin with, receiver, lease ms (0: it leaves, and all of its own go
-- back), at most so many messages, then the tags
-- Returns how many went back, and whether orcd:receivers had another type and was deleted: leases begin anew then.
local notes_prefix, own, lease, most = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local num_restored, num_deleted = 0, 0

local function number_of(tag)
    return tonumber(string.match(tag, '^%d+') or -1)
end

-- The last one first: the next that is put at the head comes before it.
local function restore(receiver, tags)
    local notes = notes_prefix .. '{' .. receiver .. '}'
    table.sort(tags, function(a, b) return number_of(a) > number_of(b) end)
    for _, tag in ipairs(tags) do
        if num_restored == most then
            return
        end
        local list = string.match(tag, '^%d+ (.*)$')
        local text = list and redis.call('HGET', notes, tag)
        local pushed = text and redis.pcall('RPUSH', list, text)
        if type(pushed) == 'number' then
            redis.call('HDEL', notes, tag)
            num_restored = num_restored + 1
            local age = redis.pcall('HGET', KEYS[2], list)
            if type(age) == 'string' then -- age.lua says what it is: one message less was taken
                local num_taken, rest = string.match(age, '^(%-?%d+) (.*)$')
                redis.call('HSET', KEYS[2], list, string.format('%d %s', (num_taken or 0) - 1, rest or ''))
            end
        elseif text and string.sub(pushed.err, 1, 9) ~= 'WRONGTYPE' then -- a note waits until its list is one again
            error(pushed.err, 0)
        end
    end
end

local function restore_all(receiver)
    local notes = notes_prefix .. '{' .. receiver .. '}'
    if redis.call('TYPE', notes).ok == 'hash' then
        restore(receiver, redis.call('HKEYS', notes))
    end
    if redis.call('TYPE', notes).ok ~= 'hash' then
        redis.call('ZREM', KEYS[1], receiver)
    end
end

if #ARGV > 4 then
    restore(own, {unpack(ARGV, 5)})
    return {num_restored, num_deleted}
end
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'zset' and kind ~= 'none' then
    num_deleted = redis.call('DEL', KEYS[1])
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if lease == 0 then
    restore_all(own)
elseif redis.call('EXISTS', notes_prefix .. '{' .. own .. '}') == 1 then
    local ends = tonumber(redis.call('ZSCORE', KEYS[1], own) or 0)
    if ends < now + lease * 2 / 3 then
        redis.call('ZADD', KEYS[1], now + lease, own)
    end
end
for _, receiver in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
    restore_all(receiver)
end
return {num_restored, num_deleted}
