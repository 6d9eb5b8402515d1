-- Store what became of a Celery task and tell those who wait for it, unless its success is stored already: a worker that
-- was thought dead must not overwrite that.
-- KEYS: celery-task-meta-<task id>
-- ARGV: JSON with the field status, ttl s
-- Returns nothing.
local current = redis.call('GET', KEYS[1])
local read, meta = pcall(cjson.decode, current or '')
if not (read and type(meta) == 'table' and meta.status == 'SUCCESS') then
    redis.call('SETEX', KEYS[1], ARGV[2], ARGV[1])
    redis.call('PUBLISH', KEYS[1], ARGV[1])
end
