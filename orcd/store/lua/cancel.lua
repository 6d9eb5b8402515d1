-- Cancel a job: through its owner, who looks at the wish with each append and renewal; at once if it has none.
-- KEYS: none
-- ARGV: job id, JSON of the terminal event, the state that it ends in, ms until the job's messages must be answered
-- Returns the state after the call ('cancelled', 'running' with the wish noted, or a terminal one), '' if unknown, 'newer'
-- if a newer version wrote the record, 'damaged' if the record cannot be used.
mend_shared_keys()
local function cancel(id, event, final, answer_ms)
    local state, schema = unpack(redis.call('HMGET', key_of(id, 'job'), 'state', 'schema'))
    if not state then
        return ''
    elseif is_newer(schema) then
        return 'newer'
    end
    check_state(state, schema)
    if state == 'running' and has_owner(id, now_ms()) then
        redis.call('HSET', key_of(id, 'job'), 'cancel', 1)
        redis.call('PUBLISH', key('control'), cjson.encode({cancel = id}))
    elseif state == 'running' or state == 'queued' then
        end_alone(id, final, event, tonumber(answer_ms))
        return final
    end
    return state
end
return guarded(cancel, unpack(ARGV)) or 'damaged'
