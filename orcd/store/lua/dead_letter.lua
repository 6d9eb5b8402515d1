-- Move a message that cannot be read from its receiver's notes to the dead letters.
-- KEYS: orcd:unacked:{R}, orcd:dead
-- ARGV: tag, reason, the message's id ('': none), at most so many bytes of the message (-1: all), at most so many dead
-- letters, time to live s
-- Returns 1, or 0 if the message is not noted any more; and whether orcd:dead had another type and was deleted.
local text = redis.call('HGET', KEYS[1], ARGV[1])
if not text then
    return {0, 0}
end
local num_deleted = 0
if redis.call('TYPE', KEYS[2]).ok ~= 'stream' then
    num_deleted = redis.call('DEL', KEYS[2])
end
local most = tonumber(ARGV[4])
local fields = {'reason', ARGV[2], 'list', string.match(ARGV[1], '^%d+ (.*)$'), 'num_bytes', #text,
    'text', most < 0 and text or string.sub(text, 1, most)}
if ARGV[3] ~= '' then
    fields[#fields + 1] = 'id'
    fields[#fields + 1] = ARGV[3]
end
redis.call('XADD', KEYS[2], 'MAXLEN', ARGV[5], '*', unpack(fields))
redis.call('EXPIRE', KEYS[2], ARGV[6])
redis.call('HDEL', KEYS[1], ARGV[1])
return {1, num_deleted}
