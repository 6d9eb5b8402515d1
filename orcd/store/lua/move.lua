-- Move a message to another queue. It is there before it is gone from where it was: Redis may be too full for a copy.
-- KEYS: the list that it is in, the list that it goes to. ARGV: the message as it is, as it is there
-- Returns 1, or 0 if it is not in its list any more.
redis.call('LPUSH', KEYS[2], ARGV[2])
if redis.call('LREM', KEYS[1], -1, ARGV[1]) == 0 then
    redis.call('LPOP', KEYS[2])
    return 0
end
return 1
