"""What an engine tells of itself is what its scheduler holds and what was counted."""

from __future__ import annotations

from tests.worker.engine.generation import sequence
from worker.engine.engine_stats import TokenCounts, engine_stats
from worker.engine.scheduler import Scheduler


def test_a_sequence_that_waits_and_one_that_runs_are_counted_apart() -> None:
    scheduler = Scheduler(num_blocks=4, block_tokens=4, step_tokens=8, max_sequences=1)
    for number in range(2):
        scheduler.add(sequence([number], []))
    scheduler.plan()
    stats = engine_stats(scheduler, TokenCounts(5, 3, 2), memory_bytes=7)
    assert (stats.running, stats.waiting, stats.steps) == (1, 1, 1)
    assert (stats.kv_blocks_used, stats.kv_blocks_total) == (1, 4)
    assert (stats.prompt_tokens, stats.output_tokens, stats.forced_tokens, stats.memory_bytes) == (5, 3, 2, 7)
