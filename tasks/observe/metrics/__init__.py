"""The figures of a worker for Prometheus: its jobs, its engine, all queues; under our names and under vLLM's."""
