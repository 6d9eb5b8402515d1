-- Write a new job's record. A job of the same id and the same request is left alone, so submitting twice is harmless.
-- KEYS: none
-- ARGV: job id, request JSON, its digest, queue, priority, time to deadline ms (0: none), ttl s, queue limit s,
--       ms until the first re-publish, 1 to refuse it if no worker serves its queue or 0, tenant ('': none),
--       traceparent ('': none), what may be packed in its log (0, or as the field `packed`)
-- Returns 1 if created, 0 if it was there; nothing is written if another request has the id (-1), its key cannot be used
-- (-2), too many jobs wait (-3), or no worker serves its queue and that was not wanted (-4).
mend_shared_keys()
return guarded(create, unpack(ARGV)) or -2
