-- Keep a new batch, for any gateway to run.
-- KEYS: none
-- ARGV: batch id, JSON of the batch, tag of the key that made it, JSON of the models that this may use, when it was made in
--       Unix seconds, s that a batch may run and be kept
-- Returns nothing.
mend('batches')
mend('batches:' .. ARGV[3])
local id, json, tag, models, created, life = unpack(ARGV)
local record = key('batch:{' .. id .. '}')
redis.call('HSET', record, 'batch', json, 'tag', tag, 'models', models)
redis.call('EXPIRE', record, life)
redis.call('ZADD', key('batches'), now_ms(), id) -- behind those that wait already, or were given back
redis.call('ZADD', key('batches:' .. tag), created, id)
extend_ttl('batches', tonumber(life))
extend_ttl('batches:' .. tag, tonumber(life))
