"""The queues as metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest

from orcd.monitoring.queue_watch import QueueFigures
from orcd.status import QueueStatus
from tasks.observe.metrics.queue_metrics import QueueMetrics
from tests.tasks.observe.watched import CANARY, Watched

FIGURES = QueueFigures(
    [
        QueueStatus("orcd", None, 2, 1, 5, 90_500, {5: 5}, 5, None),
        QueueStatus("orcd.demo", "demo", 2, 3, 7, None, {5: 7}, 7, 12_500),
        QueueStatus(f"orcd.{CANARY}", CANARY, 0, 1, 3, 60_000, {5: 3}, 3, None),
        QueueStatus("orcd.b", "b", 0, 0, 1, 30_000, {5: 1}, 1, None),
    ],
    4,
)


def test_queues_that_are_served_are_named_and_the_others_are_one() -> None:
    registry = CollectorRegistry()
    metrics = QueueMetrics(registry)
    assert "orcd_queue_waiting{" not in generate_latest(registry).decode(), "nothing is known yet"
    metrics.update(FIGURES)
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    assert lines == [
        'orcd_queue_workers{queue="orcd"} 2.0',
        'orcd_queue_workers{queue="orcd.demo"} 2.0',
        'orcd_queue_workers{queue="unserved"} 0.0',
        'orcd_queue_waiting{queue="orcd"} 5.0',
        'orcd_queue_waiting{queue="orcd.demo"} 7.0',
        'orcd_queue_waiting{queue="unserved"} 4.0',
        'orcd_queue_running{queue="orcd"} 1.0',
        'orcd_queue_running{queue="orcd.demo"} 3.0',
        'orcd_queue_running{queue="unserved"} 1.0',
        'orcd_queue_oldest_seconds{queue="orcd"} 90.5',
        'orcd_queue_oldest_seconds{queue="orcd.demo"} 0.0',
        'orcd_queue_oldest_seconds{queue="unserved"} 60.0',
        'orcd_queue_drain_seconds{queue="orcd.demo"} 12.5',
        "orcd_dead_letters 4.0",
    ]


def test_a_workers_page_has_them(watched: Watched) -> None:
    watched.observer.metrics.set_queues(FIGURES)
    page = watched.observer.metrics.page().decode()
    assert 'orcd_queue_waiting{queue="orcd.demo"} 7.0' in page
    assert CANARY not in page
