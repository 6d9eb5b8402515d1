"""Celery's consumer, which takes messages and sends task events and acknowledgements in batches."""

from __future__ import annotations

from typing import Any

import celery.worker.consumer
from celery.worker import state

FLUSH_S = 0.1


class Consumer(celery.worker.consumer.Consumer):  # type: ignore[misc]
    """Publishes what has happened to tasks ten times a second, and sooner if it is much.

    Celery does so in every turn of the event loop: at 150 jobs a second that was a tenth of its process's time.
    Acknowledgements that no message has taken along go then too.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.hub:
            self.hub.call_repeatedly(FLUSH_S, self._flush)

    def on_send_event_buffered(self) -> None:
        """Leave the event in the buffer, which is flushed when it is full or its time has come."""

    def on_ready(self) -> None:
        """Consuming begins: say how many messages may be taken at once. Celery itself only asks whether one may."""
        super().on_ready()
        self.task_consumer.channel.qos.num_free = lambda: self.pool.num_processes - len(state.reserved_requests)

    def _flush(self) -> None:
        self._flush_events()
        if self.task_consumer is not None:
            self.task_consumer.channel.qos.flush()
