"""Rotary position embedding (Su et al., "RoFormer", 2021), fused with the write of K and V to the paged cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec
import numpy as np

from kernels.batch import LayerCache
from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_constants import declare_constants
from kernels.runtime.cuda_struct import CudaStruct, Float32, Int32, Pointer
from kernels.runtime.device_array import DeviceArray, pointer_of
from kernels.runtime.launcher import Context
from kernels.weights.parameters import Attention, Pairing, RmsNorm, Rope

HEAD_DIMS = (16, 32, 64, 80, 96, 128)
WIDE_HEAD_DIMS = (256, 512)

_THREADS = 256
_WARPS = _THREADS // 32
_WARP_HEADS = 8  # of one kind; of `rope_write_whole` so many times the heads that lie in a warp
_WHOLE_WARPS = 4  # of a block of that
_Q8 = {"KV_Q8": 1}

declare_constants("rope/rope.cu", WARPS=_WARPS, HEADS=_WARP_HEADS, WHOLE_WARPS=_WHOLE_WARPS)


class AngleParams(CudaStruct, source="rope/rope_rotation"):
    """What cosines and sines are made of."""

    inverse_frequencies: Pointer  # [sets, num_pairs] float32
    num_pairs: Int32
    long_after: Int32  # sequences of more tokens take the second set of frequencies; -1: there is one set
    attention_factor: Float32
    query_growth_rate: Float32
    query_growth_interval: Int32  # 0: queries do not grow


class RotationParams(CudaStruct, source="rope/rope_rotation"):
    """What rope_rotation is given."""

    angles: AngleParams
    positions: Pointer  # [num_tokens] int32, -1: padding
    sequence_lengths: Pointer  # [num_sequences] int32
    sequence_rows: Pointer  # [num_tokens] int32
    cosine: Pointer  # [num_tokens, num_pairs] float32
    sine: Pointer  # [num_tokens, num_pairs] float32
    query_factors: Pointer  # [num_tokens] float32; null: queries do not grow
    num_tokens: Int32


class RopeParams(CudaStruct, source="rope/rope"):
    """How heads are normed and rotated."""

    cosine: Pointer  # [num_tokens, num_pairs] float32
    sine: Pointer  # [num_tokens, num_pairs] float32
    query_factors: Pointer  # [num_tokens] float32, by which rotated queries are multiplied; null: by 1
    query_norm: Pointer  # [head_dim] float32 or null: no norms
    key_norm: Pointer  # [head_dim] float32
    num_pairs: Int32  # even; 0: no rotation
    neox: Int32
    query_epsilon: Float32
    key_epsilon: Float32


class HeadCache(CudaStruct, source="rope/rope"):
    """Keys, or values, of one layer."""

    heads: Pointer  # [num_blocks, num_kv_heads, block_tokens, head_dim] float16, or codes int8
    scales: Pointer  # [num_blocks, num_kv_heads, block_tokens] float16 of codes


class LayerCacheParams(CudaStruct, source="rope/rope"):
    """The KV cache of one layer."""

    keys: HeadCache
    values: HeadCache


class RopeWriteParams(CudaStruct, source="rope/rope"):
    """What rope_write is given."""

    qkv: Pointer  # [num_tokens, (num_heads + 2 num_kv_heads) * head_dim] float16
    slots: Pointer  # [num_tokens] int32 KV slots: block * block_tokens + row, -1: padding
    cache: LayerCacheParams
    num_tokens: Int32
    num_heads: Int32
    num_kv_heads: Int32
    block_tokens: Int32
    rope: RopeParams


class RopeHeadsParams(CudaStruct, source="rope/rope_heads"):
    """What rope_heads is given."""

    qkv: Pointer  # [num_tokens, (num_heads + 2 num_kv_heads) * head_dim] float16
    slots: Pointer  # [num_tokens] int32 KV slots: block * block_tokens + row, -1: padding
    cache: LayerCacheParams
    num_tokens: Int32
    num_heads: Int32
    num_kv_heads: Int32  # 0: the layer has queries only
    block_tokens: Int32
    head_dim: Int32
    rope: RopeParams
    value_norm: Pointer  # [head_dim] float32 or null: no norm
    value_epsilon: Float32


class Rotation(msgspec.Struct, frozen=True, eq=False):
    """Cosines and sines of a step's tokens, shared by all layers."""

    cosine: DeviceArray  # [T, P] float32
    sine: DeviceArray  # [T, P] float32
    pairing: Pairing
    query_factors: DeviceArray | None = None  # [T] float32


def variants() -> list[Variant]:
    """What of rope_rotation.cu, rope_heads.cu and rope.cu is compiled."""
    own: list[Variant] = [("rope/rope_rotation", {})]
    writers: list[Variant] = [("rope/rope_heads", {}), *(("rope/rope", {"HEAD_DIM": size}) for size in HEAD_DIMS)]
    return [*own, *writers, *with_codes(writers)]


def with_codes(variants: Iterable[Variant]) -> Iterator[Variant]:
    """The same for a cache of codes."""
    return ((source, {**defines, **_Q8}) for source, defines in variants)


def rotation(
    context: Context,
    positions: DeviceArray,
    rope: Rope[DeviceArray],
    sequence_lengths: DeviceArray,
    sequence_rows: DeviceArray,
) -> Rotation:
    """Angles of ``positions`` [T] (-1: padding, anything finite).

    Token t is of the sequence ``sequence_rows[t]``, which has ``sequence_lengths`` [S] tokens. The kernel launched just
    before must not write what this one reads: the two overlap.
    """
    num_tokens, num_pairs = positions.size, rope.inverse_frequencies.shape[1]
    cosine, sine = (context.scratch((num_tokens, num_pairs), np.float32) for _ in range(2))
    query_factors = context.scratch((num_tokens,), np.float32) if rope.query_growth else None
    params = RotationParams(
        angles=angle_params(rope),
        positions=positions.pointer,
        sequence_lengths=sequence_lengths.pointer,
        sequence_rows=sequence_rows.pointer,
        cosine=cosine.pointer,
        sine=sine.pointer,
        query_factors=pointer_of(query_factors),
        num_tokens=num_tokens,
    )
    context.launch("rope/rope_rotation", "rope_rotation", -(-num_tokens * num_pairs // _THREADS), _THREADS, params)
    return Rotation(cosine, sine, rope.pairing, query_factors)


def angle_params(rope: Rope[DeviceArray]) -> AngleParams:
    """``rope`` for the struct of a kernel."""
    growth = rope.query_growth
    return AngleParams(
        inverse_frequencies=rope.inverse_frequencies.pointer,
        num_pairs=rope.inverse_frequencies.shape[1],
        long_after=-1 if rope.long_after is None else rope.long_after,
        attention_factor=rope.attention_factor,
        query_growth_rate=growth.rate if growth else 0.0,
        query_growth_interval=growth.interval if growth else 0,
    )


def rope_write(
    context: Context,
    qkv: DeviceArray,
    slots: DeviceArray,
    by: Rotation | None,
    attention: Attention[DeviceArray],
    *,
    out_cache: LayerCache[DeviceArray],
) -> None:
    """Rotate Q and K in ``qkv`` and store K and V.

    ``qkv`` [T, (num_heads + 2 * kv_heads) * D] float16: Q, K and V side by side. Q is rotated in place (``by`` None: a
    model without RoPE), after the norms of single heads if ``attention`` has such; K is left as it is and goes rotated,
    with V, to KV slot ``slots[t]`` of ``out_cache`` (`kernels.ops.attention.cache_shape`). Where that has scales, what
    goes there is `kernels.cache_format.quantise` of what would be stored as float16. Tokens whose slot is -1 are passed
    over. A layer that shares the cache of another has Q only, and writes nothing.
    """
    _, num_kv_heads, block_tokens, head_dim = out_cache.keys.shape
    num_heads = attention.num_heads
    num_tokens, width = qkv.shape
    assert width == attention.qkv_width, f"rows of {width} are not {attention.qkv_width} long"
    if not has_short_heads(attention):
        _rope_heads(context, qkv, slots, by, attention, out_cache)
        return
    params = RopeWriteParams(
        qkv=qkv.pointer,
        slots=slots.pointer,
        cache=cache_params(out_cache),
        num_tokens=num_tokens,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        block_tokens=block_tokens,
        rope=rope_params(by, attention.head_norms),
    )
    is_whole = by is not None and 2 * by.cosine.shape[1] == head_dim and attention.head_norms is None
    if is_whole and out_cache.scales is None:
        warp_heads = _WARP_HEADS * (32 // (head_dim // 8))
        kernel, num_warps, token_warps = (
            "rope_write_whole",
            _WHOLE_WARPS,
            -(-(num_heads + 2 * num_kv_heads) // warp_heads),
        )
    else:
        kernel, num_warps = "rope_write", _WARPS
        token_warps = -(-num_heads // _WARP_HEADS) + 2 * -(-num_kv_heads // _WARP_HEADS)
    num_blocks, defines = -(-num_tokens * token_warps // num_warps), cache_defines(out_cache)
    context.launch("rope/rope", kernel, num_blocks, 32 * num_warps, params, HEAD_DIM=head_dim, **defines)


def has_short_heads(attention: Attention[DeviceArray]) -> bool:
    """Whether a warp holds a head at once, and the layer makes Q, K and V of which Q and K may have norms."""
    return attention.head_dim in HEAD_DIMS and attention.value_norm is None and not attention.shares_cache


def _rope_heads(
    context: Context,
    qkv: DeviceArray,
    slots: DeviceArray,
    by: Rotation | None,
    attention: Attention[DeviceArray],
    out_cache: LayerCache[DeviceArray],
) -> None:
    """`rope_write` for what rope.cu does not know."""
    _, _, block_tokens, head_dim = out_cache.keys.shape
    num_tokens, value_norm = qkv.shape[0], attention.value_norm
    params = RopeHeadsParams(
        qkv=qkv.pointer,
        slots=slots.pointer,
        cache=cache_params(out_cache),
        num_tokens=num_tokens,
        num_heads=attention.num_heads,
        num_kv_heads=attention.num_new_heads,
        block_tokens=block_tokens,
        head_dim=head_dim,
        rope=rope_params(by, attention.head_norms),
        value_norm=value_norm.weight.pointer if value_norm else 0,
        value_epsilon=value_norm.epsilon if value_norm else 0.0,
    )
    num_blocks = -(-num_tokens * attention.qkv_width // (head_dim * _WARPS))
    context.launch("rope/rope_heads", "rope_heads", num_blocks, _THREADS, params, **cache_defines(out_cache))


def cache_params(cache: LayerCache[DeviceArray]) -> LayerCacheParams:
    """``cache`` for the struct of a kernel."""
    keys, values = cache.scales or (None, None)
    return LayerCacheParams(
        keys=HeadCache(heads=cache.keys.pointer, scales=pointer_of(keys)),
        values=HeadCache(heads=cache.values.pointer, scales=pointer_of(values)),
    )


def cache_defines(cache: LayerCache[DeviceArray]) -> dict[str, int]:
    """What kernels that read or write ``cache`` are compiled with."""
    return _Q8 if cache.scales else {}


def rope_params(
    by: Rotation | None, head_norms: tuple[RmsNorm[DeviceArray], RmsNorm[DeviceArray]] | None
) -> RopeParams:
    """The rotation ``by`` and the norms of heads for the struct of a kernel."""
    num_pairs = by.cosine.shape[1] if by else 0
    assert num_pairs % 2 == 0, f"{num_pairs} pairs: lanes take two at a time"
    query_norm, key_norm = head_norms or (None, None)
    return RopeParams(
        cosine=by.cosine.pointer if by else 0,
        sine=by.sine.pointer if by else 0,
        query_factors=pointer_of(by.query_factors) if by else 0,
        query_norm=query_norm.weight.pointer if query_norm else 0,
        key_norm=key_norm.weight.pointer if key_norm else 0,
        num_pairs=num_pairs,
        neox=by is not None and by.pairing == "neox",
        query_epsilon=query_norm.epsilon if query_norm else 0.0,
        key_epsilon=key_norm.epsilon if key_norm else 0.0,
    )
