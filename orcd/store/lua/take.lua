-- Take messages and note that they are this receiver's and not acknowledged yet; drop its notes of acknowledged ones.
-- A note is written before its message is taken, so that neither a full Redis nor a lost answer loses one.
-- Lists are emptied in their order, but every second message is the one that has waited longest if it has waited so long.
-- For a ticket in a list it takes the next message of the tenant whose turn it is (push.lua).
-- A message that is too long for any worker to read never leaves Redis: it goes to the dead letters, but for its beginning.
-- KEYS: orcd:receivers, orcd:unacked:{R}, orcd:ages, orcd:dead, then the queues' lists, the most urgent first
-- ARGV: receiver, lease ms, at most so many messages, number of the first one taken, ms that one has to wait to go before
--       more urgent ones, at most so many bytes of a message, at most so many of a dead letter, at most so many dead
--       letters, their time to live in s, then the tags of acknowledged ones
-- Returns {tag, message} for each, the keys of messages that have another type, {reason, its id or ''} for each message that
-- was too long, and whether orcd:dead had another type and was deleted. A tag is '<number> <list>', so that a note says where its message
-- goes back to. When the messages together have more bytes than one may have, the rest is left for the next call.
for at = 10, #ARGV do
    redis.call('HDEL', KEYS[2], ARGV[at])
end
local most, first_number, ageing = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local most_bytes, num_bytes = tonumber(ARGV[6]), 0
local taken, unusable, lists, too_long, num_deleted = {}, {}, {}, {}, 0

local function cannot_use(key)
    if not unusable[key] then
        unusable[key] = true
        unusable[#unusable + 1] = key
    end
end

for key = 5, #KEYS do
    local length = redis.pcall('LLEN', KEYS[key])
    if type(length) == 'table' then
        cannot_use(KEYS[key])
    elseif length > 0 then
        lists[#lists + 1] = {key = KEYS[key], length = length}
    end
end
if #lists == 0 or most < 1 then
    return {taken, unusable, {}, 0}
end
local kind = redis.call('TYPE', KEYS[1]).ok
if kind ~= 'zset' and kind ~= 'none' then -- restore replaces it; what is taken before has no lease
    return {taken, unusable, {}, 0}
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])

-- What age.lua has noted of a list.
local function numbers_of(list)
    if not list.numbers then
        list.numbers = {}
        local note = redis.pcall('HGET', KEYS[3], list.key)
        for number in string.gmatch(type(note) == 'string' and note or '', '%-?%d+') do
            list.numbers[#list.numbers + 1] = tonumber(number)
        end
    end
    return list.numbers
end

-- When the next message of a list came, nil if that is not known.
local function since(list)
    local numbers = numbers_of(list)
    for at = 3, #numbers - 1, 2 do
        if numbers[at + 1] > numbers[1] then
            return numbers[at]
        end
    end
end

-- The list of the message that has waited longest of those that have waited long, nil if there is none.
local function aged()
    local oldest, found = now - ageing
    for _, list in ipairs(lists) do
        local came = list.length > 0 and since(list)
        if came and came <= oldest then
            oldest, found = came, list
        end
    end
    return found
end

local function next_list(number)
    local list = #lists > 1 and number % 2 == 0 and aged()
    if list then
        return list
    end
    for _, urgent in ipairs(lists) do
        if urgent.length > 0 then
            return urgent
        end
    end
end

local function take(list, number, text)
    local tag = string.format('%d %s', number, list.key)
    redis.call('HSET', KEYS[2], tag, text)
    redis.call('RPOP', list.key)
    taken[#taken + 1] = {tag, text}
end

-- The tenant whose turn it is and its next message; nothing if none has one, whose ticket was left behind.
local function of_tenants(list)
    local turns = list.key .. ':tenants'
    local next_turn = redis.pcall('ZRANGE', turns, 0, 0)
    if next_turn.err then
        cannot_use(turns)
    end
    local tenant = next_turn[1]
    while tenant do
        local own = list.key .. ':tenant:' .. tenant
        local text = redis.pcall('LINDEX', own, -1)
        if type(text) == 'string' then
            return text, tenant
        elseif type(text) == 'table' then
            cannot_use(own)
        end
        redis.call('ZREM', turns, tenant)
        tenant = redis.call('ZRANGE', turns, 0, 0)[1]
    end
end

-- A tenant had its turn: it comes behind those that wait.
local function end_turn(list, tenant)
    local turns, own = list.key .. ':tenants', list.key .. ':tenant:' .. tenant
    redis.call('LTRIM', own, 0, -2)
    if redis.call('EXISTS', own) == 0 then
        redis.call('ZREM', turns, tenant)
    else
        redis.call('ZADD', turns, redis.call('ZRANGE', turns, -1, -1, 'WITHSCORES')[2] + 1, tenant)
    end
end

local function dead_letter(list, text)
    if redis.call('TYPE', KEYS[4]).ok ~= 'stream' then
        num_deleted = num_deleted + redis.call('DEL', KEYS[4])
    end
    local reason = string.format('it has %d bytes; at most %d are read', #text, most_bytes)
    -- kombu has the properties last
    local id = string.match(string.sub(text, -4096), '"correlation_id": ?"([%w_.:-]+)"')
    local fields = {'reason', reason, 'list', list.key, 'num_bytes', #text, 'text', string.sub(text, 1, tonumber(ARGV[7]))}
    if id then
        fields[#fields + 1] = 'id'
        fields[#fields + 1] = id
    end
    redis.call('XADD', KEYS[4], 'MAXLEN', ARGV[8], '*', unpack(fields))
    redis.call('EXPIRE', KEYS[4], ARGV[9])
    redis.call('LTRIM', list.key, 0, -2) -- RPOP would make another copy of it
    too_long[#too_long + 1] = {reason, id or ''}
end

local num_left = 0
for _, list in ipairs(lists) do
    num_left = num_left + list.length
end
while #taken < most and num_left > 0 and num_bytes <= most_bytes do
    local number = first_number + #taken
    local list = next_list(number)
    local text, tenant = redis.call('LINDEX', list.key, -1), nil
    if text == 'tenant' then
        text, tenant = of_tenants(list)
    end
    num_bytes = num_bytes + #(text or '')
    if not text then
        redis.call('RPOP', list.key)
    elseif #text > most_bytes then
        dead_letter(list, text)
    else
        take(list, number, text)
    end
    if tenant then
        end_turn(list, tenant)
    end
    num_left = num_left - 1
    list.length = list.length - 1
    list.num_taken = (list.num_taken or 0) + 1
    local numbers = numbers_of(list)
    numbers[1] = numbers[1] and numbers[1] + 1
end
for _, list in ipairs(lists) do
    if list.num_taken and list.numbers[1] then
        local words = {}
        for at, value in ipairs(list.numbers) do
            words[at] = string.format('%d', value)
        end
        redis.pcall('HSET', KEYS[3], list.key, table.concat(words, ' '))
    end
end
if #too_long > 0 then
    collectgarbage() -- Lua would keep the long text until many more scripts have run
end
return {taken, unusable, too_long, num_deleted}
