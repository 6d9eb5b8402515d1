"""All layers of a dense model for few tokens in one kernel: weights stay in shared memory, or stream through it."""
