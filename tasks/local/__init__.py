"""A Redis and a worker of our own on this machine, for the demo, the queue benchmark and tests."""
