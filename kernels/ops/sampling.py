"""From logits to token ids: sparse edits, a seeded draw, log probabilities; see `kernels.reference.sampling`.

The kernels give the reference's ids. Where top-p ends they may differ if the mass up to there equals what is wanted
within about 1e-9, as they count it in units of 2**-45 of the largest probability.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from kernels.batch import Draws
from kernels.runtime.compiler import Variant
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context

THREADS = 256  # of all kernels here, as in sampling.cuh
SLICE = 4096  # logits that a block takes at a time
MAX_VOCAB = 1 << 18  # sums of so many probabilities fit 64 bits; so many slices fit a merge
MAX_TOP = 20  # log probabilities reported beside the drawn one
BINS = 2048  # as in sampling_plan.cuh
CAPACITY = 4096
PLAN_BYTES = 48

# Blocks of a launch: enough to fill a GPU several times over, or just once where each leaves a histogram.
MANY_BLOCKS = 4096
FEW_BLOCKS = 1024

_ADJUST = struct.Struct("<10Q 3i 4x")
_SAMPLE = struct.Struct("<15Q 9i 4x")
_LOGPROBS = struct.Struct("<7Q 4i")


@dataclass(frozen=True, slots=True)
class Adjustments:
    """`kernels.reference.sampling.Adjustments` in device memory; entries whose row is -1 are padding."""

    rows: DeviceArray  # [N] int32
    token_ids: DeviceArray  # [N] int32
    bias: DeviceArray  # [N] float32
    seen: DeviceArray  # [N] bool or uint8
    output_counts: DeviceArray  # [N] int32
    banned: DeviceArray  # [N] bool or uint8
    repetition_penalty: DeviceArray  # [R] float32
    presence_penalty: DeviceArray  # [R] float32
    frequency_penalty: DeviceArray  # [R] float32


def variants() -> list[Variant]:
    """What of the files in cuda/sampling is compiled."""
    return [(f"sampling/{name}", {}) for name in ("sampling", "sampling_draw", "sampling_logprobs")]


def adjust_logits(context: Context, logits: DeviceArray, adjustments: Adjustments, *, out: DeviceArray) -> None:
    """Apply ``adjustments`` to ``logits`` [R, V] float32 in place: ``out`` must be ``logits``."""
    assert out == logits and logits.dtype == np.float32, "logits are adjusted where they are"
    num_entries = adjustments.rows.size
    columns = (getattr(adjustments, name).pointer for name in adjustments.__slots__)
    params = _ADJUST.pack(logits.pointer, *columns, num_entries, *logits.shape)
    context.launch("sampling/sampling", "sampling_adjust", -(-num_entries // THREADS), THREADS, params)


def sample(context: Context, logits: DeviceArray, draws: Draws, *, out_ids: DeviceArray) -> None:
    """Draw one token id a row of ``logits`` [R, V] float32 into ``out_ids`` [R] int32."""
    num_rows, vocab_size = logits.shape
    if not num_rows:
        return
    assert vocab_size <= MAX_VOCAB and logits.dtype == np.float32
    num_slices = -(-vocab_size // SLICE)
    scan = _split(num_slices, num_rows, MANY_BLOCKS)
    rank = _split(num_slices, num_rows, FEW_BLOCKS)
    draw = _split(num_slices, num_rows, MANY_BLOCKS)
    scratch = (
        context.scratch((num_rows, scan[1]), np.uint64),  # the largest of each block
        context.scratch((num_rows, PLAN_BYTES), np.uint8),
        context.scratch((num_rows, BINS), np.uint32),
        context.scratch((num_rows, BINS), np.uint64),
        context.scratch((num_rows, CAPACITY), np.uint64),  # values that only the end of the row decides on
        context.scratch((num_rows, draw[1]), np.float64),  # the best score of each block
        context.scratch((num_rows, draw[1]), np.int32),
    )
    inputs = (
        *(logits, draws.temperature, draws.top_k, draws.top_p, draws.min_p, draws.keys, draws.output_positions),
        out_ids,
    )
    pointers = (array.pointer for array in inputs + scratch)
    params = _SAMPLE.pack(*pointers, num_rows, vocab_size, num_slices, *scan, *rank, *draw)
    context.launch("sampling/sampling", "sampling_scan", (scan[1], num_rows), THREADS, params)
    context.launch("sampling/sampling_draw", "sampling_rank", (rank[1], num_rows), THREADS, params)
    context.launch("sampling/sampling_draw", "sampling_draw", (draw[1], num_rows), THREADS, params)


def top_log_probabilities(
    context: Context,
    logits: DeviceArray,
    ids: DeviceArray,
    num_top: int,
    *,
    out_logprobs: DeviceArray,
    out_top_ids: DeviceArray,
    out_top_logprobs: DeviceArray,
) -> None:
    """Log-softmax of ``logits`` [R, V] float32 at ``ids`` [R] int32, and the ``num_top`` largest of each row.

    ``out_logprobs`` [R] float32, ``out_top_ids`` [R, num_top] int32, ``out_top_logprobs`` [R, num_top] float32.
    """
    num_rows, vocab_size = logits.shape
    if not num_rows:
        return
    assert vocab_size <= MAX_VOCAB and num_top <= MAX_TOP and logits.dtype == np.float32
    num_slices = -(-vocab_size // SLICE)
    ranks = context.scratch((num_rows, num_slices, max(num_top, 1)), np.uint64)
    sums = context.scratch((num_rows, num_slices), np.float64)
    arrays = (logits, ids, out_logprobs, out_top_ids, out_top_logprobs, ranks, sums)
    params = _LOGPROBS.pack(*(array.pointer for array in arrays), num_rows, vocab_size, num_slices, num_top)
    context.launch("sampling/sampling_logprobs", "sampling_logprobs_slice", (num_slices, num_rows), THREADS, params)
    context.launch("sampling/sampling_logprobs", "sampling_logprobs_merge", num_rows, THREADS, params)


def _split(num_slices: int, num_rows: int, num_blocks: int) -> tuple[int, int]:
    """(slices a block, blocks a row) of a launch of about ``num_blocks``. Results do not depend on it."""
    slices = -(-num_slices // min(num_slices, -(-num_blocks // num_rows)))
    return slices, -(-num_slices // slices)
