"""OpenAI's bodies: read as requests, and written from results."""
