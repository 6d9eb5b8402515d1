-- Put a message into a queue, and tell the workers if they may not be looking: those that have room empty every list
-- before they wait.
-- KEYS: the queue's lists: that of the message's priority, then those that it may go to if a key before has another type
-- ARGV: message, orcd:wake
-- Returns nothing, or the error if none of the keys can be used.
local pushed
for _, list in ipairs(KEYS) do
    pushed = redis.pcall('LPUSH', list, ARGV[1])
    if type(pushed) == 'number' then
        if pushed == 1 then
            redis.call('PUBLISH', ARGV[2], list)
        end
        return
    elseif string.sub(pushed.err, 1, 9) ~= 'WRONGTYPE' then
        break
    end
end
return pushed
