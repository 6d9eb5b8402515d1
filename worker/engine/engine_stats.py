"""What an engine tells of itself in figures."""

from __future__ import annotations

from dataclasses import dataclass

from worker.contract import Stats
from worker.engine.scheduler import Scheduler


@dataclass(slots=True)
class TokenCounts:
    """Tokens since the start: of prompts, of outputs, and how many of these were not drawn."""

    num_prompt: int = 0
    num_output: int = 0
    num_forced: int = 0


def engine_stats(scheduler: Scheduler, counts: TokenCounts, *, memory_bytes: int) -> Stats:
    """Counters since the start and gauges of this moment."""
    return Stats(
        running=len(scheduler.running),
        waiting=len(scheduler.waiting),
        kv_blocks_used=scheduler.cache.block_tables.pool.num_used,
        kv_blocks_total=scheduler.cache.block_tables.pool.num_entries,
        steps=scheduler.num_steps,
        prompt_tokens=counts.num_prompt,
        output_tokens=counts.num_output,
        prefix_hit_tokens=scheduler.num_prefix_hit_tokens,
        preemptions=scheduler.num_preemptions,
        memory_bytes=memory_bytes,
        forced_tokens=counts.num_forced,
        lacks_blocks=scheduler.lacks_blocks and bool(scheduler.waiting),
        step_tokens=scheduler.step_sizes,
        state_slots_used=scheduler.cache.num_states_used,
        state_slots_total=scheduler.cache.num_states,
    )
