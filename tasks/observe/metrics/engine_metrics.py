"""The engine's figures as metrics. Its counters begin anew with each engine process; a worker's do not."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.observe.metrics.bucket_counts import BucketCounts
from tasks.observe.metrics.labelled_metrics import LabelledMetrics
from worker import contract

COUNTERS = {
    "steps": "steps",
    "prompt_tokens": "prompt_tokens",
    "output_tokens": "output_tokens",
    "forced_tokens": "forced_tokens",
    "prefix_hit_tokens": "prefix_hit_tokens",
    "preemptions": "preemptions",
    "step_s": "step_seconds",
    "host_s": "host_seconds",
}
"""Fields of `contract.Stats` that only grow while an engine lives -> what their metrics are called."""
STEP_SIZES = "step_tokens"
"""The field that is a histogram, which only grows too."""


class EngineMetrics:
    """A counter ``orcd_engine_NAME_total`` for each field that counts, and a gauge for each other one.

    The sizes of steps are a histogram, which is shown under vLLM's name too.
    """

    def __init__(self, metrics: LabelledMetrics) -> None:
        self._counters = {
            field: metrics.counter(f"orcd_engine_{name}", f"Engine: {name.replace('_', ' ')} since the worker's start")
            for field, name in COUNTERS.items()
        }
        self._gauges = {
            field: metrics.gauge(f"orcd_engine_{field}", f"Engine: {field.replace('_', ' ')}")
            for field in contract.Stats.__struct_fields__
            if field not in COUNTERS and field != STEP_SIZES
        }
        self.step_sizes = BucketCounts(contract.STEP_TOKENS)
        metrics.buckets(f"orcd_engine_{STEP_SIZES}", "Engine: tokens that a step computes", self.step_sizes)
        self._kv_use = metrics.gauge("orcd_engine_kv_use", "Engine: share of the KV blocks that are in use, 0 to 1")
        self._before: dict[str, float] = dict.fromkeys(COUNTERS, 0)
        self._sizes_before = contract.StepSizes()

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
        sizes, before = stats.step_tokens, self._sizes_before
        grown = [max(0, count - old) for count, old in zip(sizes.counts, before.counts, strict=True)]
        self.step_sizes.grow(grown, max(0, sizes.tokens - before.tokens))
        self._sizes_before = sizes
        return growth

    def engine_exited(self) -> None:
        """The next figures are those of another process. What this one did since its last figures is not counted."""
        self._before = dict.fromkeys(COUNTERS, 0)
        self._sizes_before = contract.StepSizes()
        for field in ("running", "waiting", "kv_blocks_used", "state_slots_used"):
            self._gauges[field].set(0)
        self._kv_use.set(0)
        self.set_healthy(False)

    def set_healthy(self, healthy: bool) -> None:
        """Whether the engine takes requests."""
        self._gauges["healthy"].set(healthy)


def kv_use(stats: contract.Stats) -> float:
    """The share of the KV blocks that are in use, from 0 to 1."""
    return stats.kv_blocks_used / stats.kv_blocks_total if stats.kv_blocks_total else 0.0
