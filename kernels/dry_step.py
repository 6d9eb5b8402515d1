"""Steps without memory."""

from __future__ import annotations

import numpy as np

from kernels.batch import PrefixGroups, StateRows, Step
from kernels.runtime.device_array import DeviceArray


def dry_step(
    num_tokens: int,
    num_sequences: int,
    num_logits: int,
    max_blocks: int,
    *,
    has_states: bool = False,
    prefixes: PrefixGroups[DeviceArray] | None = None,
) -> Step[DeviceArray]:
    """A step of these sizes without memory: for running a model's `forward` on a dry context."""

    def ints(*shape: int) -> DeviceArray:
        return DeviceArray(0, shape, np.dtype(np.int32))

    return Step(
        token_ids=ints(num_tokens),
        positions=ints(num_tokens),
        slots=ints(num_tokens),
        sequence_rows=ints(num_tokens),
        query_starts=ints(num_sequences + 1),
        context_lengths=ints(num_sequences),
        sequence_lengths=ints(num_sequences),
        block_tables=ints(num_sequences, max_blocks),
        logit_rows=ints(num_logits),
        states=StateRows(ints(num_sequences), ints(num_sequences)) if has_states else None,
        prefixes=prefixes,
    )
