"""Attention over the paged KV cache: grouped heads, sliding window, sinks; decode, prefill and mixed steps.

Batch-invariant by construction: see cuda/attention_plan.cuh for how the key axis is cut and merged, always the same
way, whoever does the work. `plan_attention` lists the work on the device, once a step; all layers use its list.
"""

from __future__ import annotations

import itertools
import math
import struct
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kernels.array import Array, pointer_of
from kernels.chip import A100, H100, Chip
from kernels.launch import Context
from kernels.layers import RmsNorm
from kernels.loader import Variant
from kernels.rope import HEAD_DIMS, Rotation, rope_params, rope_write
from kernels.step import Step

UNIT_KEYS = 64  # attention_plan.cuh has these, too
DECODE_ROWS = 16
_ITEM_BYTES = 64
_COUNTS_BYTES = 16

# Partial results of split work. 16 MB hold those of contexts of 250,000 tokens and more in all, summed over the
# sequences of a step (gpt-oss 20B: 254,000; Phi-3 mini: 342,000); what finds no room is not split, with the same bits.
PARTIAL_BYTES = 16 << 20

_PLAN = struct.Struct("<6Q 8i")
_ATTENTION = struct.Struct("<12Q 7i f")
_ROPE_ATTENTION = struct.Struct("<Q 2i")  # what follows _ATTENTION and rope_params


def _row_bytes(head_dim: int) -> int:
    """A row of a tile in shared memory: ROW_BYTES of cuda/attention.cuh."""
    return head_dim * 2 + 16


class _Shape(NamedTuple):
    """How the kernels are cut for a head size; within the 99 KB of shared memory that every chip gives a block."""

    decode_warps: int
    prefill_tiles: int  # of 16 rows a warp

    @property
    def defines(self) -> dict[str, int]:
        return {"DECODE_WARPS": self.decode_warps, "PREFILL_TILES": self.prefill_tiles}

    @property
    def prefill_rows(self) -> int:
        return _PREFILL_WARPS * 16 * self.prefill_tiles

    def decode_bytes(self, head_dim: int) -> int:
        """Shared memory of a decode block: tiles of K and V for each warp, and the exchange between them."""
        tile_bytes = UNIT_KEYS * _row_bytes(head_dim)
        return self.decode_warps * (2 * tile_bytes + DECODE_ROWS * (head_dim + 8 + 2) * 4)


_PREFILL_WARPS = 4


def _shape(chip: Chip, head_dim: int, *, spread: bool = False) -> _Shape:
    """``spread``: for few decode items, a processor each."""
    widest_of_two = 64 if chip.has_wgmma else 32  # of 64, small chips have no shared memory for two such blocks
    return _Shape(
        decode_warps=4 if head_dim <= 64 or spread else 2,
        prefill_tiles=2 if head_dim <= widest_of_two else 1,
    )


def _rope_shape(chip: Chip, head_dim: int, num_blocks: int) -> _Shape:
    """Of `rope_attention_decode` for so many blocks before any is split."""
    shape = _shape(chip, head_dim, spread=True)
    spreads = num_blocks <= chip.num_processors and _rope_bytes(shape, head_dim) <= chip.shared_bytes
    return shape if spreads else _shape(chip, head_dim)


def _rope_bytes(shape: _Shape, head_dim: int) -> int:
    return shape.decode_bytes(head_dim) + (DECODE_ROWS + 2) * _row_bytes(head_dim)


@dataclass(frozen=True, slots=True, eq=False)
class AttentionPlan:
    """The work of a step's attention with one window, for any layer: device arrays that `plan_attention` fills."""

    window: int
    counts: Array  # struct PlanCounts
    decode_items: Array  # struct Item [as many as there can be]
    prefill_items: Array  # struct Item; without elements where everything is decode work
    arrivals: Array  # [decode items, kv_heads] int32
    partial_outputs: Array  # [partial_rows, kv_heads, D] float32
    partial_sums: Array  # [partial_rows, kv_heads, 2] float32


def variants() -> list[Variant]:
    cases = itertools.product(HEAD_DIMS, (H100, A100), (False, True))
    shapes = {(head_dim, _shape(chip, head_dim, spread=spread)) for head_dim, chip, spread in cases}
    cut = [("attention", {"HEAD_DIM": head_dim, **shape.defines}) for head_dim, shape in sorted(shapes)]
    return [("attention_plan", {}), *cut]


def cache_shape(num_blocks: int, block_tokens: int, num_kv_heads: int, head_dim: int) -> tuple[int, int, int, int]:
    """Shape of the array of a layer's keys, or values: the tokens of a block lie together for each KV head.

    What slot ``s`` holds for head ``h`` is ``cache[s // block_tokens, h, s % block_tokens]``.
    """
    if block_tokens % 16:
        raise ValueError(f"cache blocks of {block_tokens} tokens: attention on CUDA wants a multiple of 16")
    return num_blocks, num_kv_heads, block_tokens, head_dim


def plan_attention(
    context: Context, step: Step, num_heads: int, num_kv_heads: int, head_dim: int, *, window: int
) -> AttentionPlan:
    """What there is to do for a layer of such heads with this ``window`` (0: none). Once a step and window.

    A step with as many sequences as tokens is taken for a decode step (whatever it holds is done right); others also
    get a list of prefill work. The kernel launched just before must not write the ``step``: this one runs beside it.
    """
    num_tokens, num_sequences = step.token_ids.size, step.context_lengths.size
    group = num_heads // num_kv_heads
    prefill_rows = 0 if num_tokens == num_sequences else _shape(context.chip, head_dim).prefill_rows
    token_tiles = -(-group // DECODE_ROWS)
    max_tiles = (num_sequences if prefill_rows else num_tokens) * token_tiles
    split_items = _split_items(context.chip.num_processors, num_kv_heads, max_tiles)
    max_decode_items = max_tiles + split_items
    max_prefill_items = num_tokens * group // prefill_rows + num_sequences if prefill_rows else 0
    # A sequence has at most as many spans as blocks, except of blocks larger than a span, where less is split.
    most_rows = num_tokens * group * step.block_tables.shape[1]
    partial_rows = min(PARTIAL_BYTES // (num_kv_heads * (head_dim + 2) * 4), most_rows)
    plan = AttentionPlan(
        window,
        counts=context.scratch((_COUNTS_BYTES,), np.uint8),
        decode_items=context.scratch((max_decode_items, _ITEM_BYTES), np.uint8),
        prefill_items=context.scratch((max_prefill_items, _ITEM_BYTES), np.uint8),
        arrivals=context.scratch((max_decode_items, num_kv_heads), np.int32),
        partial_outputs=context.scratch((partial_rows, num_kv_heads, head_dim), np.float32),
        partial_sums=context.scratch((partial_rows, num_kv_heads, 2), np.float32),
    )
    arrays = (
        step.query_starts,
        step.context_lengths,
        plan.counts,
        plan.decode_items,
        plan.prefill_items,
        plan.arrivals,
    )
    params = _PLAN.pack(
        *(array.pointer for array in arrays),
        num_sequences,
        group,
        window,
        prefill_rows,
        split_items,
        partial_rows,
        plan.arrivals.size,
        0,
    )
    threads = 128 if num_sequences <= 128 and num_tokens <= 128 else 1024
    context.launch("attention_plan", "attention_plan", 1, threads, params, shared_bytes=(3 * num_sequences + 2) * 4)
    return plan


def _split_items(num_processors: int, num_kv_heads: int, max_tiles: int) -> int:
    """Into how many items the keys of all sequences together are divided, if they are long enough.

    For few sequences as many as make two blocks a processor, or one for a lone sequence's, which share none; for many
    enough to divide one that is much longer than the others.
    """
    num_blocks = num_processors * min(max_tiles, 2)
    return max(num_blocks // num_kv_heads - max_tiles, num_processors // (2 * num_kv_heads), 1)


def paged_attention(
    context: Context,
    qkv: Array,
    num_heads: int,
    keys: Array,
    values: Array,
    step: Step,
    plan: AttentionPlan,
    *,
    scale: float,
    window: int,
    sinks: Array | None,
    out: Array,
) -> None:
    """softmax(q k^T * scale) v for every token over its own sequence's cache, its own position included.

    ``qkv`` [T, >= num_heads * D] float16: the queries are its first columns. ``keys`` and ``values`` (`cache_shape`)
    float16 hold the step's own tokens already. ``plan`` is what `plan_attention` made of the ``step`` for these heads
    and this ``window``. A token sees the last ``window`` positions up to its own, or all of them if ``window`` is 0.
    ``sinks`` [heads] float32 are logits that take part in the softmax and have no value (gpt-oss). ``out``
    [T, heads * D] float16; rows of tokens with position -1 become zero.
    """
    num_kv_heads, head_dim = keys.shape[1], keys.shape[3]
    shape = _shape(context.chip, head_dim)
    tile_bytes = UNIT_KEYS * _row_bytes(head_dim)
    if plan.prefill_items.size:
        context.launch(
            "attention",
            "attention_prefill",
            plan.prefill_items.shape[0] * num_kv_heads,
            _PREFILL_WARPS * 32,
            _params(qkv, num_heads, keys, values, step, plan, plan.prefill_items, scale, window, sinks, out),
            shared_bytes=2 * tile_bytes + shape.prefill_rows * head_dim * 4,
            HEAD_DIM=head_dim,
            **shape.defines,
        )
    context.launch(
        "attention",
        "attention_decode",
        plan.decode_items.shape[0] * num_kv_heads,
        shape.decode_warps * 32,
        _params(qkv, num_heads, keys, values, step, plan, plan.decode_items, scale, window, sinks, out),
        shared_bytes=shape.decode_bytes(head_dim),
        HEAD_DIM=head_dim,
        **shape.defines,
    )


def rope_attention(
    context: Context,
    qkv: Array,
    by: Rotation | None,
    head_norms: tuple[RmsNorm, RmsNorm] | None,
    num_heads: int,
    step: Step,
    plan: AttentionPlan,
    *,
    scale: float,
    window: int,
    sinks: Array | None,
    out_keys: Array,
    out_values: Array,
    out: Array,
) -> None:
    """`kernels.rope.rope_write` of the step's tokens to ``step.slots``, then `paged_attention`; the same bits.

    ``qkv`` [T, (num_heads + 2 * kv_heads) * D] float16 comes as it is projected; what it holds afterwards is of no use.
    A step with as many tokens as sequences must have one of each, or none where the context length is 0: it takes one
    kernel.
    """
    if step.token_ids.size != step.context_lengths.size:
        rope_write(context, qkv, step.slots, by, head_norms, num_heads, out_keys=out_keys, out_values=out_values)
        paged_attention(
            context,
            qkv,
            num_heads,
            out_keys,
            out_values,
            step,
            plan,
            scale=scale,
            window=window,
            sinks=sinks,
            out=out,
        )
        return
    num_blocks, num_kv_heads, _, head_dim = out_keys.shape
    row_heads = num_heads + 2 * num_kv_heads
    assert qkv.shape[1] == row_heads * head_dim, f"{qkv.shape} is not {row_heads} heads of {head_dim}"
    num_tokens = step.token_ids.size
    shape = _rope_shape(context.chip, head_dim, num_tokens * num_kv_heads)
    shared_bytes = _rope_bytes(shape, head_dim)
    params = (
        _params(qkv, num_heads, out_keys, out_values, step, plan, plan.decode_items, scale, window, sinks, out),
        rope_params(by, head_norms),
        _ROPE_ATTENTION.pack(step.slots.pointer, num_blocks, 0),
    )
    context.launch(
        "attention",
        "rope_attention_decode",
        plan.decode_items.shape[0] * num_kv_heads,
        shape.decode_warps * 32,
        b"".join(params),
        shared_bytes=context.chip.spread(shared_bytes, 1) if num_tokens == 1 else shared_bytes,
        HEAD_DIM=head_dim,
        **shape.defines,
    )


def _params(
    qkv: Array,
    num_heads: int,
    keys: Array,
    values: Array,
    step: Step,
    plan: AttentionPlan,
    items: Array,
    scale: float,
    window: int,
    sinks: Array | None,
    out: Array,
) -> bytes:
    """``Params`` of cuda/attention.cuh."""
    assert plan.window == window, f"the plan is for a window of {plan.window}, not {window}"
    _, num_kv_heads, block_tokens, head_dim = keys.shape
    assert head_dim in HEAD_DIMS, f"heads of {head_dim}: compiled are {HEAD_DIMS}"
    num_tokens, qkv_width = qkv.shape
    arrays = (
        *(qkv, keys, values, step.block_tables, step.positions, plan.counts, items),
        *(plan.arrivals, plan.partial_outputs, plan.partial_sums),
    )
    return _ATTENTION.pack(
        *(array.pointer for array in arrays),
        pointer_of(sinks),
        out.pointer,
        num_tokens,
        num_kv_heads,
        num_heads // num_kv_heads,
        qkv_width,
        block_tokens,
        step.block_tables.shape[1],
        window,
        scale * math.log2(math.e),
    )
