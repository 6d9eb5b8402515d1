"""One step's work as flat arrays: the same layout that the CUDA kernels will read from fixed device buffers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Batch:
    """The tokens of one step, sequence after sequence; prefill chunk and decode differ only in their count.

    ``T`` tokens of ``S`` sequences; sequence ``s`` owns tokens ``query_starts[s]:query_starts[s + 1]``, its last
    ones: after the step its cache holds ``context_lengths[s]`` tokens, in the blocks of ``block_tables[s]``.
    """

    token_ids: IntArray  # [T]
    positions: IntArray  # [T] position in the sequence
    slots: IntArray  # [T] where the token's K and V go: block_id * block_tokens + offset
    query_starts: IntArray  # [S + 1]
    context_lengths: IntArray  # [S]
    sequence_lengths: IntArray  # [S] tokens that are known of the sequence: those computed and those still to come
    block_tables: IntArray  # [S, max_blocks], unused entries 0
    logit_rows: IntArray  # [R] tokens whose next-token logits are wanted
