-- Note that a worker is alive and what it says of itself, by the Redis clock; forget those that have long been silent.
-- KEYS: none
-- ARGV: the worker's name, seconds for which a heartbeat counts, then fields and their values
-- Returns nothing.
local now, heartbeat = now_ms(), key('worker:{' .. ARGV[1] .. '}')
mend('workers')
redis.call('DEL', heartbeat)
redis.call('HSET', heartbeat, unpack(ARGV, 3))
redis.call('EXPIRE', heartbeat, ARGV[2])
redis.call('ZREMRANGEBYSCORE', key('workers'), '-inf', now - 1000 * ARGV[2])
redis.call('ZADD', key('workers'), now, ARGV[1])
redis.call('EXPIRE', key('workers'), ARGV[2])
