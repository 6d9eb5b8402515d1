-- Put a message into a queue, and tell the workers if they may not be looking: those that have room empty every list
-- before they wait.
-- KEYS: the queue's list of the message's priority. ARGV: message, orcd:wake
if redis.call('LPUSH', KEYS[1], ARGV[1]) == 1 then
    redis.call('PUBLISH', ARGV[2], KEYS[1])
end
