"""HTTP in front of the queue: OpenAI's API. It keeps nothing of its own, so any number run side by side."""
