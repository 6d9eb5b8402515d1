-- End a running job whose log cannot be used, as far as its keys allow.
-- KEYS: none
-- ARGV: job id, epoch, token, JSON of the terminal event, ms until the job's messages must be answered
-- Returns 1, or 0 if the job is not ours or cannot be ended.
mend_shared_keys()
local id, event = ARGV[1], ARGV[4]
if not guarded(is_owned, id, ARGV[2], ARGV[3]) then
    return 0
end
return guarded(end_alone, id, 'failed', event, tonumber(ARGV[5])) and 1 or 0
