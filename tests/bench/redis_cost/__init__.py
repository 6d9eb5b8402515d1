"""Benchmarks of what a job costs the one Redis, without a GPU."""
