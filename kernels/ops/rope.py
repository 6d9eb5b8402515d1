"""Rotary position embedding (Su et al., "RoFormer", 2021), fused with the write of K and V to the paged cache."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from kernels.batch import LayerCache
from kernels.runtime.compiler import Variant
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context
from kernels.weights.parameters import Attention, Pairing, RmsNorm, Rope

HEAD_DIMS = (16, 32, 64, 80, 96, 128)

_ROTATION = struct.Struct("<6Q 3i f")
_WRITE = struct.Struct("<4Q 4i")
_ROPE = struct.Struct("<4Q 2i 2f")
_THREADS = 256
_WARPS = _THREADS // 32
_WARP_HEADS = 8  # of one kind, as in rope.cu


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """Cosines and sines of a step's tokens, shared by all layers."""

    cosine: DeviceArray  # [T, P] float32
    sine: DeviceArray  # [T, P] float32
    pairing: Pairing


def variants() -> list[Variant]:
    """What of rope.cu is compiled."""
    return [("rope/rope", {}), *(("rope/rope", {"HEAD_DIM": head_dim}) for head_dim in HEAD_DIMS)]


def rotation(
    context: Context, positions: DeviceArray, rope: Rope, sequence_lengths: DeviceArray, sequence_rows: DeviceArray
) -> Rotation:
    """Angles of ``positions`` [T] (-1: padding, anything finite).

    Token t is of the sequence ``sequence_rows[t]``, which has ``sequence_lengths`` [S] tokens. The kernel launched just
    before must not write what this one reads: it runs beside it.
    """
    num_tokens, num_pairs = positions.size, rope.inverse_frequencies.shape[1]
    cosine, sine = (context.scratch((num_tokens, num_pairs), np.float32) for _ in range(2))
    arrays = (rope.inverse_frequencies, positions, sequence_lengths, sequence_rows, cosine, sine)
    long_after = -1 if rope.long_after is None else rope.long_after
    params = _ROTATION.pack(
        *(array.pointer for array in arrays), num_tokens, num_pairs, long_after, rope.attention_factor
    )
    context.launch("rope/rope", "rope_rotation", -(-num_tokens * num_pairs // _THREADS), _THREADS, params)
    return Rotation(cosine, sine, rope.pairing)


def rope_write(
    context: Context,
    qkv: DeviceArray,
    slots: DeviceArray,
    by: Rotation | None,
    attention: Attention,
    *,
    out_cache: LayerCache,
) -> None:
    """Rotate Q and K in ``qkv`` and store K and V.

    ``qkv`` [T, (num_heads + 2 * kv_heads) * D] float16: Q, K and V side by side. Q is rotated in place (``by`` None: a
    model without RoPE), after the norms of single heads if ``attention`` has such; K is left as it is and goes rotated,
    with V, to row ``slots[t]`` of ``out_cache`` (`kernels.ops.attention.cache_shape`). Tokens with slot -1 are passed
    over.
    """
    keys, values = out_cache
    _, num_kv_heads, block_tokens, head_dim = keys.shape
    num_heads = attention.num_heads
    num_tokens, row_heads = qkv.shape[0], num_heads + 2 * num_kv_heads
    assert qkv.shape[1] == row_heads * head_dim, f"{qkv.shape} is not {row_heads} heads of {head_dim}"
    pointers = (array.pointer for array in (qkv, slots, keys, values))
    sizes = num_tokens, num_heads, num_kv_heads, block_tokens
    params = _WRITE.pack(*pointers, *sizes) + rope_params(by, attention.head_norms)
    token_warps = -(-num_heads // _WARP_HEADS) + 2 * -(-num_kv_heads // _WARP_HEADS)
    context.launch(
        "rope/rope", "rope_write", -(-num_tokens * token_warps // _WARPS), _THREADS, params, HEAD_DIM=head_dim
    )


def rope_params(by: Rotation | None, head_norms: tuple[RmsNorm, RmsNorm] | None) -> bytes:
    """``RopeParams`` of cuda/rope/rope.cuh."""
    num_pairs = by.cosine.shape[1] if by else 0
    assert num_pairs % 2 == 0, f"{num_pairs} pairs: lanes take two at a time"
    query_norm, key_norm = head_norms or (None, None)
    return _ROPE.pack(
        by.cosine.pointer if by else 0,
        by.sine.pointer if by else 0,
        query_norm.weight.pointer if query_norm else 0,
        key_norm.weight.pointer if key_norm else 0,
        num_pairs,
        by is not None and by.pairing == "neox",
        query_norm.epsilon if query_norm else 0.0,
        key_norm.epsilon if key_norm else 0.0,
    )
