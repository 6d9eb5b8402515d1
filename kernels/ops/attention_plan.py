"""Who does what of a step's attention: the plan that all layers of one window share.

See cuda/attention/attention_plan.cuh for how the key axis is cut and merged, always the same way, whoever does the
work.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import msgspec
import numpy as np

from kernels.batch import SHORT_CHUNK, Step
from kernels.ops.attention_parts.attention_plan_params import (
    AttentionPlanParams,
    DecodePlanParams,
    Item,
    PlanCounts,
    PrefillPlanParams,
)
from kernels.ops.attention_parts.prefix_attention import (
    LEAST_WINDOW,
    NO_PLAN,
    PrefixPlan,
    plan_prefixes,
)
from kernels.ops.rope import WIDE_HEAD_DIMS
from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_constants import declare_constants
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import GpuSpec
from kernels.runtime.launcher import Context
from kernels.weights.parameters import Attention

TILE_KEYS = 64
DECODE_ROWS = 16  # query rows of a decode item: one tensor core tile
SWAPPED_ROWS = 8  # with no more of them the operands of the tensor core are exchanged
PREFILL_WARPS = 4
CROWD = 4  # decode blocks for each SM beyond which smaller ones take less time, whatever the contexts
SHORT_CROWD = 2  # beyond which they do where contexts are short
SHORT_CONTEXT = 576  # tokens, the mean of a step's sequences
HOPPER_GROUPS = {64: 2, 96: 2, 128: 2}  # of 64 query rows of such a block, by the heads that it is faster for
PREFILL_CLASSES = 4  # of prefill items by their number of tiles, where a sequence alone does not fill the GPU
SHORT_ROWS = 8 * DECODE_ROWS
"""A sequence of no more query rows is decode work: as prefill work it would be a block for each KV head, which reads a
long context alone. What comes after a cached prefix is such a sequence, and so is a short prompt."""
assert SHORT_ROWS <= SHORT_CHUNK, "a token has a row or more"

declare_constants("attention/attention_plan.cuh", TILE_KEYS=TILE_KEYS, DECODE_ROWS=DECODE_ROWS)
declare_constants("attention/attention.cu", PREFILL_WARPS=PREFILL_WARPS)

# Partial results of divided work. 16 MB hold those of contexts of 250,000 tokens and more in all, summed over the
# sequences of a step (gpt-oss 20B: 254,000; Phi-3 mini: 342,000); what finds no room is not divided, with the same
# bits.
PARTIAL_BYTES = 16 << 20


class AttentionShape(NamedTuple):
    """How the kernels are cut for a head size; within the 99 KB of shared memory that every GPU gives a block."""

    decode_warps: int
    prefill_row_tiles: int  # of 16 rows a warp
    prefill_groups: int = 0  # of 64 rows that a block of attention_prefill_hopper has; 0: that is not used

    @property
    def defines(self) -> dict[str, int]:
        """What the kernels are compiled with, in addition to the head size."""
        parts = {"PREFILL_PARTS": self.prefill_parts} if self.prefill_parts > 1 else {}
        return {"DECODE_WARPS": self.decode_warps, "PREFILL_ROW_TILES": self.prefill_row_tiles, **parts}

    @property
    def prefill_parts(self) -> int:
        """Blocks of attention_prefill that share an item's rows."""
        return self.prefill_rows // self.block_rows

    @property
    def prefill_rows(self) -> int:
        """Rows of queries of an item of prefill work."""
        return math.lcm(64 * self.prefill_groups, self.block_rows) if self.prefill_groups else self.block_rows

    @property
    def block_rows(self) -> int:
        """Rows of queries of a block of attention_prefill."""
        return PREFILL_WARPS * 16 * self.prefill_row_tiles

    def decode_bytes(self, head_dim: int, element_bytes: int, rows: int = DECODE_ROWS) -> int:
        """Shared memory of a decode block: tiles of K and V for each warp, and the exchange between them."""
        tiles = 2 * tile_bytes(head_dim, element_bytes)
        return self.decode_warps * (tiles + rows * (head_dim + 8 + 2) * 4)

    def rope_bytes(self, head_dim: int, element_bytes: int, rows: int) -> int:
        """The same of `rope_attention_decode`, with the rows that a block makes itself."""
        return self.decode_bytes(head_dim, element_bytes, rows) + (rows + 2) * query_bytes(head_dim)

    def prefill_bytes(self, head_dim: int, element_bytes: int) -> int:
        """Shared memory of a block of prefill work: a tile of K and one of V, and what its rows have merged."""
        return 2 * tile_bytes(head_dim, element_bytes) + self.block_rows * head_dim * 4


class WideShape(NamedTuple):
    """How the kernels for heads of `kernels.ops.rope.WIDE_HEAD_DIMS` are cut, whose warps share query rows."""

    prefill_row_tiles: int  # of 16 rows, of a group of warps
    prefill_groups: int  # of a block
    kv_buffers: int  # 2: keys and values have a place in shared memory each

    @property
    def defines(self) -> dict[str, int]:
        """What the kernels are compiled with, in addition to the head size."""
        tiles, groups = self.prefill_row_tiles, self.prefill_groups
        return {"PREFILL_ROW_TILES": tiles, "PREFILL_GROUPS": groups, "KV_BUFFERS": self.kv_buffers}

    @property
    def prefill_rows(self) -> int:
        """Rows of queries of a block of prefill work."""
        return 16 * self.prefill_row_tiles * self.prefill_groups

    def shared_bytes(self, head_dim: int, element_bytes: int, rows: int) -> int:
        """Shared memory of a block: queries, tiles of K and V, weights, and each warp's largest scores."""
        tiles = self.kv_buffers * tile_bytes(head_dim, element_bytes)
        return rows * query_bytes(head_dim) + tiles + rows * (TILE_KEYS * 2 + 16) + wide_warps(head_dim) * rows * 4


def wide_warps(head_dim: int) -> int:
    """Warps of a block whose warps share query rows: each has 64 columns of the output."""
    return head_dim // 64


def wide_shape(gpu: GpuSpec, head_dim: int) -> WideShape:
    """The shape of these kernels; where a GPU has no room for keys beside values, they take turns."""
    if head_dim == 256:
        return WideShape(2, 2 if gpu.shared_bytes > 150 << 10 else 1, 2)
    return WideShape(2, 1, 2) if gpu.has_wgmma else WideShape(1, 1, 1)


def query_bytes(head_dim: int) -> int:
    """Bytes of a row of queries in shared memory: QUERY_BYTES of cuda/attention/attention.cuh."""
    return head_dim * 2 + 16


def tile_bytes(head_dim: int, element_bytes: int) -> int:
    """Bytes of a tile in shared memory: TILE_BYTES there. Elements of one byte are codes, and each row has a scale."""
    row_bytes = (head_dim * element_bytes // 16 | 1) * 16
    return TILE_KEYS * (row_bytes + (2 if element_bytes == 1 else 0))


def attention_shape(gpu: GpuSpec, head_dim: int, *, spread: bool = False, crowded: bool = False) -> AttentionShape:
    """The shape of all kernels of a step.

    With ``spread`` that for few decode items, an SM each; ``crowded`` for many, or of few tiles each, several of which
    are to fit an SM.
    """
    widest_of_two = 64 if gpu.has_wgmma else 32  # of 64, small GPUs have no shared memory for two such blocks
    return AttentionShape(
        decode_warps=4 if (head_dim <= 64 and not crowded) or spread else 2,
        prefill_row_tiles=2 if head_dim <= widest_of_two else 1,
        prefill_groups=HOPPER_GROUPS.get(head_dim, 0) if gpu.has_wgmma else 0,
    )


class AttentionPlan(msgspec.Struct, frozen=True, eq=False):
    """The work of a step's attention with one window, for any layer: device arrays that `plan_attention` fills."""

    window: int
    counts: DeviceArray  # `PlanCounts`
    decode_items: DeviceArray  # `Item` [as many as there can be]
    prefill_items: DeviceArray  # `Item`; without elements where everything is decode work
    arrivals: DeviceArray  # [decode items, kv_heads] int32
    partial_outputs: DeviceArray  # [partial_rows, kv_heads, D] float32
    partial_sums: DeviceArray  # [partial_rows, kv_heads, 2] float32
    prefix: PrefixPlan | None  # None: nothing is attended to together


def variants() -> list[Variant]:
    """What of attention_plan.cu is compiled."""
    return [("attention/attention_plan", {})]


def plan_attention(context: Context, step: Step[DeviceArray], attention: Attention[DeviceArray]) -> AttentionPlan:
    """What there is to do for layers with such heads and the window of ``attention``. Once a step and window.

    A step with as many sequences as tokens is taken for a decode step (whatever it holds is done right); others also
    get a list of prefill work. The kernel launched just before must not write the ``step``: the two overlap.
    """
    num_kv_heads, head_dim = attention.num_kv_heads, attention.head_dim
    num_tokens, num_sequences = step.token_ids.size, step.context_lengths.size
    group = attention.num_heads // num_kv_heads
    shape = wide_shape(context.gpu, head_dim) if head_dim in WIDE_HEAD_DIMS else attention_shape(context.gpu, head_dim)
    prefill_rows = 0 if num_tokens == num_sequences else shape.prefill_rows
    token_row_tiles = -(-group // DECODE_ROWS)
    max_row_tiles = num_tokens * token_row_tiles
    if prefill_rows:
        short_row_tiles = max(SHORT_ROWS // DECODE_ROWS, token_row_tiles)
        max_row_tiles = min(
            num_sequences * short_row_tiles, max_row_tiles, num_tokens * group // DECODE_ROWS + num_sequences
        )
    wanted_items = _wanted_items(context.gpu.num_sms, num_kv_heads, max_row_tiles)
    max_decode_items = max_row_tiles + wanted_items
    max_prefill_items = num_tokens * group // prefill_rows + num_sequences if prefill_rows else 0
    # A sequence has at most as many KV splits as blocks, except of blocks larger than a split, where less is divided.
    most_rows = num_tokens * group * step.block_tables.shape[1]
    partial_rows = min(PARTIAL_BYTES // (num_kv_heads * (head_dim + 2) * 4), most_rows)
    prefix = _plan_prefixes(context, step, attention)
    all_rows = partial_rows + (prefix.num_rows if prefix else 0)
    plan = AttentionPlan(
        attention.window,
        counts=context.scratch((PlanCounts.layout.num_bytes,), np.uint8),
        decode_items=context.scratch((max_decode_items, Item.layout.num_bytes), np.uint8),
        prefill_items=context.scratch((max_prefill_items, Item.layout.num_bytes), np.uint8),
        arrivals=context.scratch((max_decode_items, num_kv_heads), np.int32),
        partial_outputs=context.scratch((all_rows, num_kv_heads, head_dim), np.float32),
        partial_sums=context.scratch((all_rows, num_kv_heads, 2), np.float32),
        prefix=prefix,
    )
    params = AttentionPlanParams(
        query_starts=step.query_starts.pointer,
        context_lengths=step.context_lengths.pointer,
        counts=plan.counts.pointer,
        decode_items=plan.decode_items.pointer,
        prefill_items=plan.prefill_items.pointer,
        arrivals=plan.arrivals.pointer,
        num_sequences=num_sequences,
        group=group,
        window=attention.window,
        num_arrivals=plan.arrivals.size,
        decode_plan=DecodePlanParams(
            short_rows=SHORT_ROWS,
            wanted_items=wanted_items,
            partial_rows=partial_rows,
            columns=max(1, context.gpu.num_sms // num_kv_heads),
        ),
        prefill=PrefillPlanParams(
            rows=prefill_rows,
            classes=_prefill_classes(context.gpu.num_sms, max_prefill_items * num_kv_heads, num_sequences),
            num_sms=context.gpu.num_sms,
        ),
        prefix=prefix.params(context.gpu.num_sms, num_kv_heads, partial_rows) if prefix else NO_PLAN,
    )
    if num_tokens == num_sequences == 1 and not prefix:
        context.launch("attention/attention_plan", "attention_plan_one", 1, 32, params)
        return plan
    threads = 128 if max(num_sequences, max_prefill_items, max_decode_items // 2) <= 128 else 1024
    shared_bytes = (6 * num_sequences + 2) * 4
    context.launch("attention/attention_plan", "attention_plan", 1, threads, params, shared_bytes=shared_bytes)
    return plan


def _plan_prefixes(context: Context, step: Step[DeviceArray], attention: Attention[DeviceArray]) -> PrefixPlan | None:
    """What of the step's prefix groups is attended to together in layers with such heads and this window."""
    is_narrow = 0 < attention.window < LEAST_WINDOW
    if step.prefixes is None or is_narrow or attention.head_dim in WIDE_HEAD_DIMS:
        return None
    return plan_prefixes(context, step.prefixes, attention, max_splits=step.block_tables.shape[1])


def _prefill_classes(num_sms: int, num_blocks: int, num_sequences: int) -> int:
    """Into how many classes prefill items are sorted by length: one where even those of one sequence fill the GPU."""
    return 1 if num_blocks >= 2 * num_sms * num_sequences else PREFILL_CLASSES


def _wanted_items(num_sms: int, num_kv_heads: int, max_row_tiles: int) -> int:
    """Into how many items the keys of all sequences together are divided, if they are long enough.

    For few sequences as many as make two blocks an SM, or one for a single sequence, which shares none; for many
    enough to divide one that is much longer than the others.
    """
    num_blocks = num_sms * min(max_row_tiles, 2)
    return max(num_blocks // num_kv_heads - max_row_tiles, num_sms // (2 * num_kv_heads), 1)
