"""The engine's figures as metrics."""

from __future__ import annotations

import msgspec

from tasks.observe.metrics.engine_metrics import COUNTERS, STEP_SIZES
from tests.tasks.observe.watched import STATS, Watched
from worker import contract


def test_every_figure_of_the_engine_is_a_metric(watched: Watched) -> None:
    watched.observer.stats(STATS)
    for name in set(contract.Stats.__struct_fields__) - {STEP_SIZES}:
        metric = f"orcd_engine_{COUNTERS[name]}_total" if name in COUNTERS else f"orcd_engine_{name}"
        assert watched.sample(metric) == float(getattr(STATS, name)), name
    assert watched.sample("orcd_engine_kv_use") == 5 / 6
    steps = [watched.sample("orcd_engine_step_tokens_bucket", le=bound) for bound in ("1.0", "16.0", "16384.0", "+Inf")]
    assert steps == [1, 3, 3, 7]
    assert watched.sample("orcd_engine_step_tokens_sum") == 68_000


def test_counters_go_on_when_another_engine_counts_from_the_start(watched: Watched) -> None:
    watched.observer.stats(STATS)
    watched.observer.stats(msgspec.structs.replace(STATS, steps=20))
    watched.observer.engine_exited(-9)
    assert watched.sample("orcd_engine_running") == watched.sample("orcd_engine_healthy") == 0
    assert watched.sample("orcd_engine_state_slots_used") == 0
    few = contract.StepSizes((5, *[0] * 13), 5)
    watched.observer.stats(msgspec.structs.replace(STATS, steps=5, step_s=0.5, step_tokens=few))
    assert watched.sample("orcd_engine_steps_total") == 25
    assert watched.sample("orcd_engine_step_seconds_total") == 0.5
    assert watched.sample("orcd_engine_preemptions_total") == 22
    assert watched.sample("orcd_engine_step_tokens_count") == 12
    assert watched.sample("orcd_engine_step_tokens_sum") == 68_005


def test_a_counter_never_falls(watched: Watched) -> None:
    watched.observer.stats(STATS)
    watched.observer.stats(msgspec.structs.replace(STATS, steps=3))
    assert watched.sample("orcd_engine_steps_total") == 7
