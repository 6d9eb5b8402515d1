-- Write a new job's record. A job of the same id and the same request is left alone, so submitting twice is harmless.
-- KEYS: none
-- ARGV: job id, request JSON, its digest, queue, priority, time to deadline ms (0: none), ttl s, queue limit s,
--       ms until the first re-publish
-- Returns 1 if created, 0 if it was there, -1 if another request has the id, -2 if its key cannot be used.
check_shared_keys()
return guarded(create, unpack(ARGV)) or -2
