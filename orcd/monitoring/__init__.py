"""What operators look at and act on: the workers that are alive, and what is in the queues."""
