"""Attention of sequences that begin with the same blocks to these blocks: once for all of them.

A part of `kernels.ops.attention`: see cuda/attention/attention_prefix.cu.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, NamedTuple

import msgspec
import numpy as np

from kernels.batch import PrefixGroups
from kernels.ops.rope import HEAD_DIMS, with_codes
from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_constants import declare_constants
from kernels.runtime.cuda_struct import CudaStruct, FieldType, Int32, Pointer
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context
from kernels.weights.parameters import Attention

MAX_GROUPS = 32
"""Groups of a step on a GPU."""
PREFIX_WARPS = 4
LEAST_WINDOW = 1024
"""Layers of a smaller window see too little of a prefix."""
STATE_BYTES = 16 << 20
"""So much of the workspace may be used for more than the two states that each query row has at least."""

_SOURCE = "attention/attention_prefix"

declare_constants("attention/attention_plan_prefix.cuh", MAX_GROUPS=MAX_GROUPS)
declare_constants("attention/attention_prefix.cu", PREFIX_WARPS=PREFIX_WARPS)


class PrefixStates(CudaStruct, source="attention/attention_plan"):
    """Where partial results over shared keys are."""

    row: Int32
    stride: Int32
    num_closed: Int32  # of KV splits that are complete


class PrefixItem(CudaStruct, source="attention/attention_plan"):
    """What a block does for each KV head; attention_plan.cuh says more."""

    first_member: Int32
    sequence: Int32
    first_row: Int32
    num_rows: Int32
    first_tile: Int32
    end_tile: Int32
    states: PrefixStates
    first_state: Int32
    open_state: Int32
    unused: Annotated[bytes, FieldType("4s", 4, 4, "")]


class PrefixPlanParams(CudaStruct, source="attention/attention_plan"):
    """What attention_plan is given of prefix groups."""

    groups: Pointer  # [num_groups, 3] int32
    members: Pointer  # [num_sequences] int32
    items: Pointer  # [as many as the shapes allow] PrefixItem
    num_groups: Int32  # 0: there are no arrays
    item_rows: Int32  # query rows of an item
    wanted_items: Int32  # into about so many items the work is divided when there are few rows
    first_row: Int32  # of the workspace, of those for states
    num_rows: Int32


class PrefixWork(CudaStruct, source="attention/attention"):
    """What attention_prefix has to do; null pointers: nothing."""

    items: Pointer  # [counts] PrefixItem
    members: Pointer  # [num_sequences] int32
    query_starts: Pointer  # [num_sequences + 1] int32


class PrefixPlan(msgspec.Struct, frozen=True, eq=False):
    """What prefix groups attend to together: device arrays that `kernels.ops.attention_plan.plan_attention` fills."""

    prefixes: PrefixGroups[DeviceArray]
    items: DeviceArray  # `PrefixItem` [as many as there can be]
    item_rows: int  # query rows of an item
    num_rows: int  # of the workspace, for states

    def params(self, gpu_sms: int, num_kv_heads: int, first_row: int) -> PrefixPlanParams:
        """`PrefixPlanParams`; the rows of the workspace begin with ``first_row``."""
        return PrefixPlanParams(
            groups=self.prefixes.groups.pointer,
            members=self.prefixes.members.pointer,
            items=self.items.pointer,
            num_groups=self.prefixes.groups.shape[0],
            item_rows=self.item_rows,
            wanted_items=_wanted_items(gpu_sms, num_kv_heads),
            first_row=first_row,
            num_rows=self.num_rows,
        )

    def work(self, query_starts: DeviceArray) -> PrefixWork:
        """`PrefixWork`."""
        return PrefixWork(
            items=self.items.pointer, members=self.prefixes.members.pointer, query_starts=query_starts.pointer
        )


NO_PLAN = PrefixPlanParams(
    groups=0, members=0, items=0, num_groups=0, item_rows=1, wanted_items=1, first_row=0, num_rows=0
)
NO_WORK = PrefixWork(items=0, members=0, query_starts=0)


class PrefixShape(NamedTuple):
    """How the kernel is cut for a head size; within the 99 KB of shared memory that every GPU gives a block."""

    row_tiles: int  # of 16 rows a warp
    stages: int  # tiles of keys and values in shared memory

    @property
    def defines(self) -> dict[str, int]:
        """What the kernel is compiled with, in addition to the head size."""
        return {"PREFIX_ROW_TILES": self.row_tiles, "PREFIX_STAGES": self.stages}

    @property
    def rows(self) -> int:
        """Query rows of a block."""
        return 16 * PREFIX_WARPS * self.row_tiles

    def shared_bytes(self, head_dim: int, tile_bytes: int) -> int:
        """Shared memory of a block: tiles of keys and values, and what its rows have merged."""
        return 2 * self.stages * tile_bytes + self.rows * head_dim * 4


def prefix_shape(head_dim: int) -> PrefixShape:
    """The shape of the kernel for heads of this size."""
    return PrefixShape(row_tiles=2 if head_dim <= 64 else 1, stages=2 if head_dim <= 96 else 1)


def variants() -> list[Variant]:
    """What of attention_prefix.cu is compiled; of soft caps and of codes what published models have."""
    plain = [(_SOURCE, {"HEAD_DIM": head_dim, **prefix_shape(head_dim).defines}) for head_dim in HEAD_DIMS]
    capped = [(source, {**defines, "SOFTCAP": 1}) for source, defines in plain if defines["HEAD_DIM"] == 128]
    return [*plain, *capped, *with_codes([each for each in plain if each[1]["HEAD_DIM"] in (64, 96, 128)])]


def plan_prefixes(
    context: Context, prefixes: PrefixGroups[DeviceArray], attention: Attention[DeviceArray], max_splits: int
) -> PrefixPlan:
    """Memory for the work of ``prefixes``; no sequence has more KV splits than ``max_splits``."""
    num_groups, num_sequences = prefixes.groups.shape[0], prefixes.members.shape[0]
    num_kv_heads = attention.num_kv_heads
    assert num_groups <= MAX_GROUPS, f"{num_groups} prefix groups, more than {MAX_GROUPS}"
    num_rows = num_sequences * (attention.num_heads // num_kv_heads)
    item_rows = prefix_shape(attention.head_dim).rows
    most_items = num_rows // item_rows + num_groups + _wanted_items(context.gpu.num_sms, num_kv_heads)
    state_rows = STATE_BYTES // (num_kv_heads * (attention.head_dim + 2) * 4)
    return PrefixPlan(
        prefixes,
        items=context.scratch((most_items, PrefixItem.layout.num_bytes), np.uint8),
        item_rows=item_rows,
        num_rows=num_rows * 2 + min(state_rows, num_rows * max_splits),
    )


def attend_to_prefixes(
    context: Context,
    plan: PrefixPlan,
    attention: Attention[DeviceArray],
    params: bytes,
    tile_bytes: int,
    layer_defines: Mapping[str, int],
) -> None:
    """Launch the work of ``plan`` with ``params``, `kernels.ops.attention.AttentionParams`."""
    shape, head_dim = prefix_shape(attention.head_dim), attention.head_dim
    context.launch(
        _SOURCE,
        "attention_prefix",
        plan.items.shape[0] * attention.num_kv_heads,
        PREFIX_WARPS * 32,
        params,
        shared_bytes=shape.shared_bytes(head_dim, tile_bytes),
        HEAD_DIM=head_dim,
        **shape.defines,
        **layer_defines,
    )


def _wanted_items(num_sms: int, num_kv_heads: int) -> int:
    """As many as make two blocks an SM."""
    return max(2 * num_sms // num_kv_heads, 1)
