"""What is under test: a Redis behind a proxy, workers, and the clocks they go by."""
