"""What a forward pass hands from op to op."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np

from kernels.batch import AnyArray, Step, first
from kernels.devices.protocol import AnyOps, Device
from worker.model.config import ModelConfig


class StepActivations(msgspec.Struct, frozen=True, eq=False):
    """Arrays for the T tokens of a step, of which R have logits, until the next step; of the device's type or float32.

    Every layer writes the same ones.
    """

    residual: AnyArray  # [T, hidden] float32: the residual stream
    qkv: AnyArray  # [T, (num_heads + 2 * num_kv_heads) * head_dim]
    attended: AnyArray  # [T, num_heads * head_dim]
    activated: AnyArray  # [T, intermediate]; [0, intermediate] in a mixture of experts, whose op has arrays of its own
    logit_rows: AnyArray  # [R] int32, of the other arrays
    logits: AnyArray  # [R, vocab_size] float32
    own: tuple[AnyArray, ...] = ()  # [T, width] each, of widths that a family asks for

    @classmethod
    def allocate(
        cls, config: ModelConfig, device: Device, step: Step[AnyArray], own_widths: Sequence[int] = ()
    ) -> StepActivations:
        """Start a step on ``device``: arrays with arbitrary contents."""
        empty, dtype = device.begin_step(), device.activation_dtype
        num_tokens = step.token_ids.size
        return cls(
            residual=empty((num_tokens, config.hidden), np.float32),
            qkv=empty((num_tokens, config.query_width + 2 * config.kv_width), dtype),
            attended=empty((num_tokens, config.query_width), dtype),
            activated=empty((0 if config.num_experts else num_tokens, config.intermediate), dtype),
            logit_rows=step.logit_rows,
            logits=empty((step.logit_rows.size, config.vocab_size), np.float32),
            own=tuple(empty((num_tokens, width), dtype) for width in own_widths),
        )

    def select(self, ops: AnyOps, rows: AnyArray, logit_rows: AnyArray) -> StepActivations:
        """Arrays for some ``rows`` [N] alone, with their residual stream; ``logit_rows`` are of these."""
        count = rows.shape[0]
        return StepActivations(
            residual=ops.select_rows(self.residual, rows, self.residual.shape[1]),
            qkv=first(self.qkv, count),
            attended=first(self.attended, count),
            activated=first(self.activated, count) if self.activated.size else self.activated,
            logit_rows=logit_rows,
            logits=self.logits,
            own=tuple(first(array, count) for array in self.own),
        )
