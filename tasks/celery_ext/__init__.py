"""Everything that touches the internals of Celery and kombu: pool, consumer, transport, result backend, tasks."""
