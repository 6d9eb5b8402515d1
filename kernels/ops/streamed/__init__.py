"""All layers of a dense model in one kernel, whose weights stream through shared memory."""
