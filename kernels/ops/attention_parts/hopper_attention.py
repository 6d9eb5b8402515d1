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
_PANEL = 64  # columns
_QUEUED = 2
_ONES_BYTES = 1024  # by which weights are multiplied to be added up
_SOURCE = "attention/attention_hopper"


class HopperCut(NamedTuple):
    """How attention_prefill_hopper is cut for a head size."""

    groups: int  # of 64 query rows of a block
    blocks_of_item: int  # blocks that share an item's rows
    stages: int  # tiles of keys and values that a block has
    blocks_per_sm: int

    def defines(self, head_dim: int) -> dict[str, int]:
        """What the kernel is compiled with."""
        cut = {"PREFILL_GROUPS": self.groups, "PREFILL_PARTS": self.blocks_of_item, "KV_STAGES": self.stages}
        return {"HEAD_DIM": head_dim, **cut, "BLOCKS_PER_SM": self.blocks_per_sm}

    def shared_bytes(self, head_dim: int) -> int:
        """Shared memory of a block: tiles of K and V in panels, what its rows have merged, a few ones, and barriers."""
        tile_bytes = -(-head_dim // _PANEL) * TILE_KEYS * _PANEL * 2
        keeps_merged = head_dim <= 64 and self.groups > 1  # in registers
        merged_bytes = 0 if keeps_merged else self.groups * 64 * head_dim * 4
        query_bytes = self.groups * 64 * head_dim * 2 if head_dim > 96 else 0  # else they are in registers
        own_bytes = merged_bytes + query_bytes + _ONES_BYTES
        return 1024 + self.stages * (2 * tile_bytes + 3 * 8) + _QUEUED * 20 + own_bytes


def cuts_of(head_dim: int) -> list[HopperCut]:
    """The usual one and, of heads of 64, one whose blocks have but 64 rows, so that more SMs have one."""
    shape = attention_shape(H100, head_dim)
    groups = shape.prefill_groups
    usual = HopperCut(groups, shape.prefill_rows // (64 * groups), 4, 1)
    return [usual, HopperCut(1, shape.prefill_rows // 64, 4, 2)] if head_dim == 64 else [usual]


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
    usual, *smaller = cuts_of(head_dim)
    cut = smaller[0] if smaller and num_items * usual.blocks_of_item <= SMALL_UP_TO * num_sms else usual
    key_map, value_map = (
        tensor_map(array.reshape(-1, head_dim), (KEY_GROUP, _PANEL)) for array in (cache.keys, cache.values)
    )
    context.launch(
        _SOURCE,
        "attention_prefill_hopper",
        min(num_items * cut.blocks_of_item, cut.blocks_per_sm * num_sms),
        cut.groups * 128 + (32 if cut.groups == 1 else 128),
        HopperAttentionParams(attention=params, key_map=key_map, value_map=value_map),
        shared_bytes=cut.shared_bytes(head_dim),
        **cut.defines(head_dim),
        **defines,
    )
