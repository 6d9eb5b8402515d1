"""Metrics that all carry the same labels."""

from __future__ import annotations

from tasks.observe.metrics.labelled_metrics import LabelledMetrics


def test_each_kind_of_metric_carries_the_labels() -> None:
    metrics = LabelledMetrics({"model": "m"})
    metrics.counter("a", "A").inc(2)
    metrics.gauge("b", "B").set(3)
    metrics.histogram("c", "C", (1.0,)).add(0.5)
    by_state = metrics.counter_by("state", "d", "D", ["x", "y"])
    by_state("x").inc()
    by_state("z").inc()
    lines = [line for line in metrics.page().decode().splitlines() if not line.startswith("#")]
    assert lines == [
        'a_total{model="m"} 2.0',
        'b{model="m"} 3.0',
        'c_bucket{le="1.0",model="m"} 1.0',
        'c_bucket{le="+Inf",model="m"} 1.0',
        'c_count{model="m"} 1.0',
        'c_sum{model="m"} 0.5',
        'd_total{model="m",state="x"} 1.0',
        'd_total{model="m",state="y"} 0.0',
        'd_total{model="m",state="z"} 1.0',
    ]
