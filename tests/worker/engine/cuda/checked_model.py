"""A model on a `LateDevice` that tells what it computes."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from kernels.batch import GreedyDraw, SamplingParams, Step
from tests.worker.engine.cuda.late_device import LateModel


class StepChecks(Protocol):
    """What is told."""

    logits: np.ndarray | None
    params: SamplingParams | None

    def check_step(self, step: Step, states: tuple[np.ndarray, np.ndarray] | None) -> None: ...


class CheckedModel(LateModel):
    """Tells checks of each step that the device comes to, from when a runner has some."""

    checks: StepChecks | None = None
    sampling: SamplingParams  # of all rows

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        sample = self.device.ops.sample

        def sample_and_keep(logits: np.ndarray, params: SamplingParams, **out: np.ndarray) -> None:
            sample(logits, params, **out)
            self.device.enqueue(lambda: self._keep(logits, params))

        self.device.ops.sample = sample_and_keep

    def _draw(self, logits: np.ndarray, greedy: GreedyDraw) -> None:
        super()._draw(logits, greedy)
        self._keep(logits, self.sampling.first(len(logits)))

    def _keep(self, logits: np.ndarray, params: SamplingParams) -> None:
        if self.checks is not None:
            self.checks.logits, self.checks.params = logits, params

    def _compute(self, step: Step, cache: Any, logits: np.ndarray) -> None:
        if self.checks is not None:
            self.checks.check_step(step, cache.states[0] if self.bytes_per_state else None)
        super()._compute(step, cache, logits)
