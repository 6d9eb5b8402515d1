"""Benchmarks of the queue: whom a fault, a farewell or somebody else's request keeps waiting, and for how long."""
