"""Jobs and token logs in Redis, the scripts that write them, and the messages that announce jobs."""
