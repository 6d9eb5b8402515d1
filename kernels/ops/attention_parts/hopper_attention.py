"""Attention of many query rows with Hopper's instructions, over a cache of float16."""

from __future__ import annotations

from kernels.batch import LayerCache
from kernels.ops.attention_parts.attention_params import AttentionParams, HopperAttentionParams
from kernels.ops.attention_plan import HOPPER_GROUPS, TILE_KEYS, AttentionShape, attention_shape
from kernels.runtime.compiler import Variant
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import H100
from kernels.runtime.launcher import Context
from kernels.runtime.tma import tensor_map

KEY_GROUP = 16  # keys that lie together in the cache, whatever its blocks
STAGES = 4  # tiles of keys and values that a block has
_PANEL = 64  # columns
_QUEUED = 2
_SOURCE = "attention/attention_hopper"


def variants() -> list[Variant]:
    """What of attention_hopper.cu is compiled; with soft caps what published models have."""
    plain = [_defines(head_dim, attention_shape(H100, head_dim)) for head_dim in sorted(HOPPER_GROUPS)]
    return [(_SOURCE, defines) for defines in (*plain, _defines(128, attention_shape(H100, 128)) | {"SOFTCAP": 1})]


def attend(
    context: Context,
    shape: AttentionShape,
    cache: LayerCache[DeviceArray],
    params: AttentionParams,
    num_items: int,
    defines: dict[str, int],
) -> None:
    """The ``num_items`` items of prefill work, each of one KV head. ``defines``: what the layer asks for."""
    head_dim = cache.keys.shape[-1]
    key_map, value_map = (
        tensor_map(array.reshape(-1, head_dim), (KEY_GROUP, _PANEL)) for array in (cache.keys, cache.values)
    )
    context.launch(
        _SOURCE,
        "attention_prefill_hopper",
        min(num_items * num_parts(shape), context.gpu.num_sms),
        (1 + shape.prefill_groups) * 128,
        HopperAttentionParams(attention=params, key_map=key_map, value_map=value_map),
        shared_bytes=shared_bytes(shape, head_dim),
        **_defines(head_dim, shape),
        **defines,
    )


def num_parts(shape: AttentionShape) -> int:
    """Blocks that share an item's rows."""
    return shape.prefill_rows // (64 * shape.prefill_groups)


def shared_bytes(shape: AttentionShape, head_dim: int) -> int:
    """Shared memory of a block: tiles of K and V in panels, barriers, and what its rows have merged."""
    tile_bytes = -(-head_dim // _PANEL) * TILE_KEYS * _PANEL * 2
    return 1024 + STAGES * (2 * tile_bytes + 3 * 8) + _QUEUED * 20 + shape.prefill_groups * 64 * head_dim * 4


def _defines(head_dim: int, shape: AttentionShape) -> dict[str, int]:
    parts = {"PREFILL_PARTS": num_parts(shape)} if num_parts(shape) > 1 else {}
    return {"HEAD_DIM": head_dim, "PREFILL_GROUPS": shape.prefill_groups, "KV_STAGES": STAGES, **parts}
