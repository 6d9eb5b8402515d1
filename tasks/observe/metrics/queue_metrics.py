"""The queues as metrics: of all workers together, as far as they are known."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from orcd.monitoring.queue_watch import QueueFigures
from orcd.status import QueueStatus

UNSERVED = "unserved"
"""Stands for all queues that nobody serves: their names are made up by whoever sends jobs."""
_GAUGES = {
    "workers": "Workers that take a queue's jobs, now or once their model is loaded",
    "waiting": "Jobs that wait in a queue",
    "running": "Jobs of a queue that run",
    "oldest_seconds": "How long the oldest job of a queue has waited",
    "drain_seconds": "In about what time a queue's last job is begun; missing where that is unknown",
}


class QueueMetrics(Collector):
    """Gauges ``orcd_queue_NAME`` with the label ``queue``, and ``orcd_dead_letters``. Every worker tells the same.

    ``update`` and a scrape may happen at the same time.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._figures: QueueFigures | None = None
        registry.register(self)

    def update(self, figures: QueueFigures) -> None:
        """What was counted last."""
        self._figures = figures

    def describe(self) -> Iterable[GaugeMetricFamily]:
        """Every metric without values."""
        return self._families()

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """Every metric with its values."""
        families = self._families()
        if self._figures is not None:
            *of_queues, dead_letters = families
            dead_letters.add_metric([], self._figures.dead_letters)
            for name, values in _rows(self._figures.queues):
                for family, value in zip(of_queues, values, strict=True):
                    if value is not None:
                        family.add_metric([name], value)
        return families

    def _families(self) -> list[GaugeMetricFamily]:
        families = [GaugeMetricFamily(f"orcd_queue_{name}", text, labels=["queue"]) for name, text in _GAUGES.items()]
        return [*families, GaugeMetricFamily("orcd_dead_letters", "Messages that nobody could read", labels=[])]


def _rows(queues: Sequence[QueueStatus]) -> Iterable[tuple[str, Sequence[float | None]]]:
    unserved = [queue for queue in queues if not queue.workers]
    for queue in queues:
        if queue.workers:
            drain_s = None if queue.drain_ms is None else queue.drain_ms / 1000
            yield queue.queue, (queue.workers, queue.waiting, queue.running, (queue.oldest_ms or 0) / 1000, drain_s)
    oldest_ms = max((queue.oldest_ms or 0 for queue in unserved), default=0)
    waiting, running = sum(queue.waiting for queue in unserved), sum(queue.running for queue in unserved)
    yield UNSERVED, (0, waiting, running, oldest_ms / 1000, None)
