"""OpenAI's files and batches: prompt files that gateways run, each owned by one of them for as long as that lives."""
