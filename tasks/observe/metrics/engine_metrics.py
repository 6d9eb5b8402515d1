"""The engine's figures as metrics. Its counters begin anew with each engine process; a worker's do not."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.observe.metrics.labelled_metrics import LabelledMetrics
from worker import contract

COUNTERS = {
    "steps": "steps",
    "prompt_tokens": "prompt_tokens",
    "output_tokens": "output_tokens",
    "prefix_hit_tokens": "prefix_hit_tokens",
    "preemptions": "preemptions",
    "step_s": "step_seconds",
    "host_s": "host_seconds",
}
"""Fields of `contract.Stats` that only grow while an engine lives -> what their metrics are called."""


class EngineMetrics:
    """A counter ``orcd_engine_NAME_total`` for each field that counts, and a gauge for each other one."""

    def __init__(self, metrics: LabelledMetrics) -> None:
        self._counters = {
            field: metrics.counter(f"orcd_engine_{name}", f"Engine: {name.replace('_', ' ')} since the worker's start")
            for field, name in COUNTERS.items()
        }
        self._gauges = {
            field: metrics.gauge(f"orcd_engine_{field}", f"Engine: {field.replace('_', ' ')}")
            for field in contract.Stats.__struct_fields__
            if field not in COUNTERS
        }
        self._kv_use = metrics.gauge("orcd_engine_kv_use", "Engine: share of the KV blocks that are in use, 0 to 1")
        self._before: dict[str, float] = dict.fromkeys(COUNTERS, 0)

    def update(self, stats: contract.Stats) -> Mapping[str, float]:
        """Take new figures; returns how much each counter has grown."""
        for field, gauge in self._gauges.items():
            gauge.set(getattr(stats, field))
        self._kv_use.set(kv_use(stats))
        counts: dict[str, float] = {field: getattr(stats, field) for field in COUNTERS}
        growth = {field: max(0, count - self._before[field]) for field, count in counts.items()}
        for field, amount in growth.items():
            self._counters[field].inc(amount)
        self._before = counts
        return growth

    def engine_exited(self) -> None:
        """The next figures are those of another process. What this one did since its last figures is not counted."""
        self._before = dict.fromkeys(COUNTERS, 0)
        for field in ("running", "waiting", "kv_blocks_used"):
            self._gauges[field].set(0)
        self._kv_use.set(0)
        self.set_healthy(False)

    def set_healthy(self, healthy: bool) -> None:
        """Whether the engine takes requests."""
        self._gauges["healthy"].set(healthy)


def kv_use(stats: contract.Stats) -> float:
    """The share of the KV blocks that are in use, from 0 to 1."""
    return stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0
