"""From logits to token ids: edits, masks, a seeded draw, log probabilities; see `kernels.reference.sampling`.

The kernels give the reference's ids. Where top-p ends they may differ if the mass up to there equals what is wanted
within about 1e-9, as they count it in units of 2**-45 of the largest probability.
"""

from __future__ import annotations

import numpy as np

from kernels.batch import HostIds, LogitEdits, SamplingParams
from kernels.logit_edits import MAX_COUNT, EditResets
from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_constants import declare_constants
from kernels.runtime.cuda_struct import CudaStruct, Int32, Pointer, UInt32, UInt64
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context

THREADS = 256  # of a block of all kernels here
SLICE = 4096  # logits that a block takes at a time: four float4 a thread
GROUPS = THREADS // 32  # of a slice: what one warp takes of it
MAX_VOCAB = (1 << 19) - SLICE  # sums of so many probabilities of at most 2**45 fit 64 bits; the slices fit a merge
MAX_TOP = 20  # the kernel's capacity: log probabilities of a row that it can report besides the drawn token's
BINS = 2048  # of the distance below the largest logit, after temperature
CAPACITY = 4096  # listed values of a row; rows with more are read again
TOP_K_CAPACITY = 2048  # the same of a row with a small top-k
MAX_GROUPS = MAX_VOCAB // SLICE * GROUPS

declare_constants("sampling/sampling.cuh", THREADS=THREADS, SLICE=SLICE, GROUPS=GROUPS)
declare_constants("sampling/sampling_plan.cuh", BINS=BINS, CAPACITY=CAPACITY, MAX_COUNT=MAX_COUNT)
declare_constants("sampling/sampling_top_k.cuh", TOP_K_CAPACITY=TOP_K_CAPACITY, MAX_GROUPS=MAX_GROUPS)

# Blocks of a launch: enough to fill a GPU several times over, or just once where each leaves a histogram.
SCAN_BLOCKS = DRAW_BLOCKS = 4096
RANK_BLOCKS = 1024
FILL_BLOCKS = 4  # of a row of edits: a prompt has some hundred tokens

_LOGPROB_LIMITS = {"MAX_TOP": MAX_TOP, "MAX_SLICES": MAX_VOCAB // SLICE}


class EditPointers(CudaStruct, source="sampling/sampling"):
    """`kernels.batch.LogitEdits` as kernels see it."""

    counts: Pointer  # [rows, counts_stride] uint16
    biases: Pointer  # [rows, biases_stride] TOKEN_BIAS
    counts_stride: Int32
    biases_stride: Int32


class ResetParams(CudaStruct, source="sampling/sampling"):
    """What sampling_clear_edits and sampling_fill_edits are given."""

    edits: EditPointers
    resets: Pointer  # [R] EDIT_RESET
    counts: Pointer  # [C] TOKEN_COUNT
    biases: Pointer  # [B] TOKEN_BIAS


class MaskParams(CudaStruct, source="sampling/sampling"):
    """What sampling_mask is given."""

    logits: Pointer  # [num_rows, vocab] float32
    numbers: Pointer  # [num_rows] int32, of masks
    masks: Pointer  # [num_masks, num_words] uint32
    vocab: Int32
    num_words: Int32


class Plan(CudaStruct, source="sampling/sampling_draw"):
    """What kernels that draw tell each other about a row; see sampling_plan.cuh."""

    mass: UInt64
    count_before: UInt64
    k: UInt64
    kept_bins: Int32
    last_bin: Int32
    k_bin: Int32
    num_listed: UInt32
    rank_arrivals: UInt32
    draw_arrivals: UInt32


class SampleScratch(CudaStruct, source="sampling/sampling_draw"):
    """What kernels that draw leave for each other."""

    ranks: Pointer  # [num_rows, scan.chunks] uint64: the largest logit of each block
    group_ranks: Pointer  # [num_rows, num_slices * GROUPS] uint64: the largest logit of each group
    plans: Pointer  # [num_rows] Plan
    counts: Pointer  # [num_rows, BINS] uint32
    masses: Pointer  # [num_rows, BINS] uint64
    listed: Pointer  # [num_rows, CAPACITY] uint64: values that only the end of the row decides on
    scores: Pointer  # [num_rows, draw.chunks] float64: the best score of each block
    score_ids: Pointer  # [num_rows, draw.chunks] int32


class LaunchSplit(CudaStruct, source="sampling/sampling_draw"):
    """How the blocks of a launch share out a row."""

    slices: Int32  # a block
    chunks: Int32  # blocks a row


class SampleParams(CudaStruct, source="sampling/sampling_draw"):
    """What sampling_scan, sampling_rank and sampling_draw are given."""

    logits: Pointer  # [num_rows, vocab] float32
    sampling_rows: Pointer  # [num_rows] SamplingRow
    output_positions: Pointer  # [num_rows] int64
    out_ids: Pointer  # [num_rows] int32
    host_ids: Pointer  # [num_rows] int32, or null
    edits: EditPointers
    scratch: SampleScratch
    num_rows: Int32
    vocab: Int32
    num_slices: Int32
    scan: LaunchSplit
    rank: LaunchSplit
    draw: LaunchSplit


class LogprobParams(CudaStruct, source="sampling/sampling_logprobs"):
    """What sampling_logprobs_slice and sampling_logprobs_merge are given."""

    logits: Pointer  # [num_rows, vocab] float32
    sampling_rows: Pointer  # [num_rows] SamplingRow
    ids: Pointer  # [num_rows] int32
    out_logprobs: Pointer  # [num_rows] float32
    out_top_ids: Pointer  # [num_rows, most_top] int32
    out_top_logprobs: Pointer  # [num_rows, most_top] float32
    group_ranks: Pointer  # [num_rows, num_slices * GROUPS] uint64: the largest logit of each group
    sums: Pointer  # [num_rows, num_slices] float64
    num_rows: Int32
    vocab: Int32
    num_slices: Int32
    most_top: Int32


def variants() -> list[Variant]:
    """What of the files in cuda/sampling is compiled."""
    return [("sampling/sampling", {}), ("sampling/sampling_draw", {}), ("sampling/sampling_logprobs", _LOGPROB_LIMITS)]


def reset_edits(context: Context, edits: LogitEdits[DeviceArray], resets: EditResets[DeviceArray]) -> None:
    """Begin rows of ``edits`` with what ``resets`` say; whatever they held is forgotten."""
    num_resets = resets.resets.size
    params = ResetParams(
        edits=_pointers(edits),
        resets=resets.resets.pointer,
        counts=resets.counts.pointer,
        biases=resets.biases.pointer,
    )
    num_clear_blocks = -(-edits.counts.shape[1] // (8 * THREADS))
    context.launch("sampling/sampling", "sampling_clear_edits", (num_clear_blocks, num_resets), THREADS, params)
    context.launch("sampling/sampling", "sampling_fill_edits", (FILL_BLOCKS, num_resets), THREADS, params)


def _pointers(edits: LogitEdits[DeviceArray] | None) -> EditPointers:
    if edits is None:
        return EditPointers(counts=0, biases=0, counts_stride=0, biases_stride=0)
    (_, counts_stride), (_, biases_stride) = edits.counts.shape, edits.biases.shape
    return EditPointers(
        counts=edits.counts.pointer,
        biases=edits.biases.pointer,
        counts_stride=counts_stride,
        biases_stride=biases_stride,
    )


def mask_logits(
    context: Context, logits: DeviceArray, numbers: DeviceArray, masks: DeviceArray, *, out: DeviceArray
) -> None:
    """Make ``logits`` [R, V] float32 -inf where the bit of a row's mask is 0; ``numbers`` [R] int32 tell which it is.

    ``masks`` [K, ceil(V / 32)] uint32. In place: ``out`` must be ``logits``.
    """
    assert out == logits and logits.dtype == np.float32, "logits are masked where they are"
    num_rows, vocab_size = logits.shape
    num_words = masks.shape[1]
    assert num_words == -(-vocab_size // 32) and masks.dtype == np.uint32 and numbers.shape == (num_rows,)
    params = MaskParams(
        logits=logits.pointer, numbers=numbers.pointer, masks=masks.pointer, vocab=vocab_size, num_words=num_words
    )
    context.launch("sampling/sampling", "sampling_mask", (-(-num_words // THREADS), num_rows), THREADS, params)


def sample(
    context: Context,
    logits: DeviceArray,
    params: SamplingParams[DeviceArray],
    *,
    out_ids: DeviceArray,
    host_ids: HostIds = None,
) -> None:
    """Edit ``logits`` [R, V] float32 where they are, and draw one token id a row into ``out_ids`` [R] int32.

    ``host_ids`` [R], in page-locked host memory, gets the ids, too.
    """
    num_rows, vocab_size = logits.shape
    if not num_rows:
        return
    assert vocab_size <= MAX_VOCAB and logits.dtype == np.float32
    num_slices = -(-vocab_size // SLICE)
    scan_slices, scan_chunks = _launch_split(num_slices, num_rows, SCAN_BLOCKS)
    rank_slices, rank_chunks = _launch_split(num_slices, num_rows, RANK_BLOCKS)
    draw_slices, draw_chunks = _launch_split(num_slices, num_rows, DRAW_BLOCKS)
    scratch = SampleScratch(
        ranks=context.scratch((num_rows, scan_chunks), np.uint64).pointer,
        group_ranks=context.scratch((num_rows, num_slices * GROUPS), np.uint64).pointer,
        plans=context.scratch((num_rows, Plan.layout.num_bytes), np.uint8).pointer,
        counts=context.scratch((num_rows, BINS), np.uint32).pointer,
        masses=context.scratch((num_rows, BINS), np.uint64).pointer,
        listed=context.scratch((num_rows, CAPACITY), np.uint64).pointer,
        scores=context.scratch((num_rows, draw_chunks), np.float64).pointer,
        score_ids=context.scratch((num_rows, draw_chunks), np.int32).pointer,
    )
    arguments = SampleParams(
        logits=logits.pointer,
        sampling_rows=params.rows.pointer,
        output_positions=params.output_positions.pointer,
        out_ids=out_ids.pointer,
        host_ids=0 if host_ids is None else host_ids.ctypes.data,
        edits=_pointers(params.edits),
        scratch=scratch,
        num_rows=num_rows,
        vocab=vocab_size,
        num_slices=num_slices,
        scan=LaunchSplit(slices=scan_slices, chunks=scan_chunks),
        rank=LaunchSplit(slices=rank_slices, chunks=rank_chunks),
        draw=LaunchSplit(slices=draw_slices, chunks=draw_chunks),
    )
    context.launch("sampling/sampling", "sampling_scan", (scan_chunks, num_rows), THREADS, arguments)
    context.launch("sampling/sampling_draw", "sampling_rank", (rank_chunks, num_rows), THREADS, arguments)
    context.launch("sampling/sampling_draw", "sampling_draw", (draw_chunks, num_rows), THREADS, arguments)


def top_log_probabilities(
    context: Context,
    logits: DeviceArray,
    ids: DeviceArray,
    params: SamplingParams[DeviceArray],
    *,
    out_logprobs: DeviceArray,
    out_top_ids: DeviceArray,
    out_top_logprobs: DeviceArray,
) -> None:
    """Log-softmax of ``logits`` [R, V] float32 at ``ids`` [R] int32, and as many of the largest as each row asks for.

    ``out_logprobs`` [R] float32, ``out_top_ids`` [R, most] int32, ``out_top_logprobs`` [R, most] float32.
    """
    num_rows, vocab_size = logits.shape
    most_top = out_top_ids.shape[1]
    if not num_rows:
        return
    assert vocab_size <= MAX_VOCAB and most_top <= MAX_TOP and logits.dtype == np.float32
    num_slices = -(-vocab_size // SLICE)
    group_ranks = context.scratch((num_rows, num_slices * GROUPS), np.uint64)
    sums = context.scratch((num_rows, num_slices), np.float64)
    arguments = LogprobParams(
        logits=logits.pointer,
        sampling_rows=params.rows.pointer,
        ids=ids.pointer,
        out_logprobs=out_logprobs.pointer,
        out_top_ids=out_top_ids.pointer,
        out_top_logprobs=out_top_logprobs.pointer,
        group_ranks=group_ranks.pointer,
        sums=sums.pointer,
        num_rows=num_rows,
        vocab=vocab_size,
        num_slices=num_slices,
        most_top=most_top,
    )
    source, limits = "sampling/sampling_logprobs", _LOGPROB_LIMITS
    context.launch(source, "sampling_logprobs_slice", (num_slices, num_rows), THREADS, arguments, **limits)
    context.launch(source, "sampling_logprobs_merge", num_rows, THREADS, arguments, **limits)


def _launch_split(num_slices: int, num_rows: int, num_blocks: int) -> tuple[int, int]:
    """(slices a block, blocks a row) of a launch of about ``num_blocks``. Results do not depend on it."""
    slices = -(-num_slices // min(num_slices, -(-num_blocks // num_rows)))
    return slices, -(-num_slices // slices)
