"""Opens the runner that a model's device needs."""

from __future__ import annotations

from typing import NamedTuple

from kernels.devices.protocol import is_gpu
from worker.engine.runner import Runner, SynchronousRunner
from worker.model.registry import Model
from worker.settings import Settings

STEP_TIMEOUT_SHARE = 0.8
"""Part of ``engine_step_timeout_s`` that a device has for a step: its error names the kernel that hangs, and is to be
reported before the engine is killed because it sends nothing."""


class RunnerSize(NamedTuple):
    """What there is room for, see `worker.engine.scheduler.Scheduler` and `worker.engine.cuda.buffers.StepLimits`."""

    num_blocks: int
    num_states: int
    max_sequences: int
    max_sequence_tokens: int


def open_runner(model: Model, settings: Settings, size: RunnerSize, *, capture: bool) -> Runner:
    """Allocates the cache; ``capture``: see `worker.engine.engine.Engine`."""
    num_blocks, num_states, max_sequences, max_sequence_tokens = size
    block_tokens = settings.kv_block_tokens
    if not is_gpu(model.device):
        return SynchronousRunner(
            model,
            num_blocks=num_blocks,
            block_tokens=block_tokens,
            max_sequences=max_sequences,
            num_states=num_states,
        )
    # Not at the top: the CPU device needs nothing of CUDA's.
    from worker.engine.cuda.buffers import StepLimits
    from worker.engine.cuda.runner import CudaRunner

    limits = StepLimits(
        block_tokens=block_tokens,
        step_tokens=settings.step_tokens,
        max_sequences=max_sequences,
        max_sequence_tokens=max_sequence_tokens,
        vocab_size=model.config.vocab_size,
        has_states=num_states > 0,
    )
    timeout_s = STEP_TIMEOUT_SHARE * settings.engine_step_timeout_s
    return CudaRunner(model, limits, num_blocks=num_blocks, num_states=num_states, timeout_s=timeout_s, capture=capture)
