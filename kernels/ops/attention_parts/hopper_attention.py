"""Attention of many query rows with Hopper's instructions, over a cache of float16."""

from __future__ import annotations

from typing import NamedTuple

from kernels.batch import LayerCache
from kernels.ops.attention_parts.attention_params import AttentionParams, HopperAttentionParams
from kernels.ops.attention_plan import HOPPER_GROUPS, TILE_KEYS, attention_shape
from kernels.runtime.compiler import Variant
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import H100
from kernels.runtime.launcher import Context
from kernels.runtime.tma import tensor_map

KEY_GROUP = 16  # keys that lie together in the cache, whatever its blocks
SMALL_UP_TO = 1.3
"""Blocks for each SM up to which smaller ones take less time."""
SPLIT_UP_TO = 1.0
"""Of these, for each SM, up to which two warpgroups share the keys of one."""
_PANEL = 64  # columns
_QUEUED = 2
_SPLIT_GROUPS = 2
_ONES_BYTES = 1024  # by which weights are multiplied to be added up
_SOURCE = "attention/attention_hopper"


class HopperCut(NamedTuple):
    """How attention_prefill_hopper is cut for a head size."""

    groups: int  # of 64 query rows of a block
    blocks_of_item: int  # blocks that share an item's rows
    stages: int  # tiles of keys and values that a block has
    blocks_per_sm: int
    shares_keys: bool = False  # two warpgroups have the same rows, and every second KV split each

    @property
    def kernel(self) -> str:
        """Its name."""
        return "attention_prefill_hopper_split" if self.shares_keys else "attention_prefill_hopper"

    @property
    def num_threads(self) -> int:
        """Those of a block: warpgroups, and one of which some warps bring tiles, or a warp that does."""
        if self.shares_keys:
            return (_SPLIT_GROUPS + 1) * 128
        return self.groups * 128 + (32 if self.groups == 1 else 128)

    def grid(self, num_items: int, num_sms: int) -> int:
        """How many blocks: one for each part of an item, or as many as run at once, which take these in turn."""
        num_blocks = num_items * self.blocks_of_item
        return num_blocks if self.shares_keys else min(num_blocks, self.blocks_per_sm * num_sms)

    def defines(self, head_dim: int) -> dict[str, int]:
        """What the kernel is compiled with."""
        cut = {"PREFILL_GROUPS": self.groups, "PREFILL_PARTS": self.blocks_of_item, "KV_STAGES": self.stages}
        shared = {"HAS_SPLIT_GROUPS": 1} if self.shares_keys else {}
        return {"HEAD_DIM": head_dim, **cut, "BLOCKS_PER_SM": self.blocks_per_sm, **shared}

    def shared_bytes(self, head_dim: int) -> int:
        """Shared memory of a block: tiles of K and V in panels, what its rows have merged, a few ones, and barriers."""
        tile_bytes = -(-head_dim // _PANEL) * TILE_KEYS * _PANEL * 2
        keeps_merged = head_dim <= 64 and self.groups > 1  # in registers
        merged_bytes = 0 if keeps_merged else self.groups * 64 * head_dim * 4
        query_bytes = self.groups * 64 * head_dim * 2 if head_dim > 96 else 0  # else they are in registers
        own_bytes = merged_bytes + query_bytes + _ONES_BYTES
        if self.shares_keys:
            return 1024 + _SPLIT_GROUPS * (self.stages * 2 * tile_bytes + own_bytes + 1024)
        return 1024 + self.stages * (2 * tile_bytes + 3 * 8) + _QUEUED * 20 + own_bytes


def cuts_of(head_dim: int) -> list[HopperCut]:
    """The usual one and, of heads of 64, two whose blocks have but 64 rows, so that more SMs have one."""
    shape = attention_shape(H100, head_dim)
    groups, parts = shape.prefill_groups, shape.prefill_rows // 64
    usual = HopperCut(groups, parts // groups, 4, 1)
    return [usual, HopperCut(1, parts, 4, 2), HopperCut(1, parts, 4, 1, True)] if head_dim == 64 else [usual]


def _cut_for(num_sms: int, head_dim: int, num_items: int) -> HopperCut:
    usual, *smaller = cuts_of(head_dim)
    if not smaller or num_items * usual.blocks_of_item > SMALL_UP_TO * num_sms:
        return usual
    small, split = smaller
    return split if num_items * split.blocks_of_item <= SPLIT_UP_TO * num_sms else small


def variants() -> list[Variant]:
    """What of attention_hopper.cu is compiled; with soft caps what published models have."""
    plain = [cut.defines(head_dim) for head_dim in sorted(HOPPER_GROUPS) for cut in cuts_of(head_dim)]
    capped = [defines | {"SOFTCAP": 1} for defines in plain if defines["HEAD_DIM"] == 128]
    return [(_SOURCE, defines) for defines in (*plain, *capped)]


def attend(
    context: Context, cache: LayerCache[DeviceArray], params: AttentionParams, num_items: int, defines: dict[str, int]
) -> None:
    """The ``num_items`` items of prefill work, each of one KV head. ``defines``: what the layer asks for."""
    head_dim, num_sms = cache.keys.shape[-1], context.gpu.num_sms
    cut = _cut_for(num_sms, head_dim, num_items)
    if context.dry:  # another step may have another one
        for each in cuts_of(head_dim):
            context.note_variant(_SOURCE, each.defines(head_dim) | defines)
    key_map, value_map = (
        tensor_map(array.reshape(-1, head_dim), (KEY_GROUP, _PANEL)) for array in (cache.keys, cache.values)
    )
    context.launch(
        _SOURCE,
        cut.kernel,
        cut.grid(num_items, num_sms),
        cut.num_threads,
        HopperAttentionParams(attention=params, key_map=key_map, value_map=value_map),
        shared_bytes=cut.shared_bytes(head_dim),
        **cut.defines(head_dim),
        **defines,
    )
