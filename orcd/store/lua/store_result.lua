-- Store what became of a Celery task and tell those who wait for it, unless its success is stored already: a worker that
-- was thought dead must not overwrite that. Nor is a failure stored of a task that was revoked: the revocation ended it.
-- KEYS: celery-task-meta-<task id>
-- ARGV: JSON with the field status, ttl s
-- Returns nothing.
local function status_of(text)
    local read, meta = pcall(cjson.decode, text)
    return read and type(meta) == 'table' and meta.status
end
local current = status_of(redis.call('GET', KEYS[1]) or '')
if current == 'REVOKED' and status_of(ARGV[1]) ~= 'FAILURE' then
    current = nil
end
if current ~= 'SUCCESS' and current ~= 'REVOKED' then
    redis.call('SETEX', KEYS[1], ARGV[2], ARGV[1])
    redis.call('PUBLISH', KEYS[1], ARGV[1])
end
