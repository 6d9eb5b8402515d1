"""One step's work as flat arrays: NumPy arrays on the CPU, views of fixed device buffers on CUDA."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Int32Array = Any
"""A NumPy array or a `kernels.array.Array`, int32, contiguous."""


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """The tokens of one step, sequence after sequence; prefill chunk and decode differ only in their count.

    ``T`` tokens of ``S`` sequences; sequence ``s`` owns tokens ``query_starts[s]:query_starts[s + 1]``, its last
    ones: after the step its cache holds ``context_lengths[s]`` tokens, in the blocks of ``block_tables[s]``.

    A CUDA graph runs a step padded to its bucket: padded tokens have position -1, slot -1, token id 0 and sequence
    row 0; padded sequences own one padded token each and have context and sequence length 0; R = T = S there.
    """

    token_ids: Int32Array  # [T]
    positions: Int32Array  # [T] position in the sequence
    slots: Int32Array  # [T] where the token's K and V go: block_id * block_tokens + offset
    sequence_rows: Int32Array  # [T] which row of the arrays of sequences below is the token's
    query_starts: Int32Array  # [S + 1]
    context_lengths: Int32Array  # [S]
    sequence_lengths: Int32Array  # [S] tokens that are known of the sequence: those computed and those still to come
    block_tables: Int32Array  # [S, max_blocks], unused entries 0
    logit_rows: Int32Array  # [R] tokens whose next-token logits are wanted
    attention_plan: Any = None
    """What ``ops.plan_attention`` made of the arrays above, once for all layers; None on the CPU."""
