-- Tell a worker to leave, over the channel that all of them listen on.
-- KEYS: none
-- ARGV: the worker's name, 'drain' or 'stop'
-- Returns 1 if there is such a worker, else 0. It may not have heard it: tell it again until it has left.
if redis.call('EXISTS', key('worker:{' .. ARGV[1] .. '}')) == 0 then
    return 0
end
redis.call('PUBLISH', key('control'), cjson.encode({[ARGV[2]] = ARGV[1]}))
return 1
