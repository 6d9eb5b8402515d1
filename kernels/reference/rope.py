"""Rotary position embedding (Su et al., "RoFormer", 2021), fused with the write of K and V to the paged cache."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from kernels.batch import LayerCache
from kernels.cache_format import quantise
from kernels.reference.norm import normalise
from kernels.weights.parameters import Attention, Pairing, Rope

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


class Rotation(msgspec.Struct, frozen=True, eq=False):
    """Cosines and sines of a step's tokens, shared by all layers."""

    cosine: Float32  # [T, 1, P]
    sine: Float32  # [T, 1, P]
    pairing: Pairing
    query_factors: Float32 | None = None  # [T, 1, 1]


def rotation(positions: Int32, rope: Rope[Float32], sequence_lengths: Int32, sequence_rows: Int32) -> Rotation:
    """Angles of ``positions`` [T].

    Token t is of the sequence ``sequence_rows[t]``, which has ``sequence_lengths`` [S] tokens.
    """
    is_long = rope.long_after is not None and sequence_lengths[sequence_rows] > rope.long_after
    frequencies = rope.inverse_frequencies[np.asarray(is_long, np.int32)]
    # The angle is rounded to float32 as in the reference implementations; its cosine is then exact to float32.
    angles = positions[:, None].astype(np.float32) * frequencies
    angles = angles.astype(np.float64)[:, None]
    factor, growth, query_factors = rope.attention_factor, rope.query_growth, None
    if growth is not None:
        steps = np.maximum(positions, 0) // growth.interval
        query_factors = (1 + growth.rate * np.log1p(steps)).astype(np.float32)[:, None, None]
    return Rotation(
        (np.cos(angles) * factor).astype(np.float32),
        (np.sin(angles) * factor).astype(np.float32),
        rope.pairing,
        query_factors,
    )


def rotate(heads: Float32, by: Rotation) -> None:
    """Rotate ``heads`` [T, heads, D] in place."""
    num_pairs = by.cosine.shape[-1]
    if by.pairing == "neox":
        first, second = heads[..., :num_pairs], heads[..., num_pairs : 2 * num_pairs]
    else:
        first, second = heads[..., : 2 * num_pairs : 2], heads[..., 1 : 2 * num_pairs : 2]
    rotated = first * by.cosine - second * by.sine
    second *= by.cosine
    second += first * by.sine
    first[:] = rotated


def rope_write(
    qkv: Float32,
    slots: Int32,
    by: Rotation | None,
    attention: Attention[Float32],
    *,
    out_cache: LayerCache[NDArray[Any]],
) -> None:
    """Rotate Q and K in ``qkv`` and store K and V.

    ``qkv`` [T, (num_heads + 2 * kv_heads) * D]: Q, K and V side by side; Q and K are rotated in place (``by`` None: a
    model without RoPE), after the norms of single heads if ``attention`` has such. Token t's K and V go to row
    ``slots[t]`` of the keys and values of ``out_cache``, both [blocks, block_tokens, kv_heads, D]; where that has
    scales, [blocks, block_tokens, kv_heads], each head goes there as codes and a scale. A layer that shares the cache
    of another has Q only, and writes nothing.
    """
    head_dim = out_cache.keys.shape[3]
    num_heads, num_rotated = attention.num_heads, attention.num_heads + attention.num_new_heads
    heads = qkv.reshape(qkv.shape[0], num_rotated + attention.num_new_heads, head_dim)
    if attention.head_norms is not None:
        query_norm, key_norm = attention.head_norms
        heads[:, :num_heads] = normalise(query_norm, heads[:, :num_heads])
        heads[:, num_heads:num_rotated] = normalise(key_norm, heads[:, num_heads:num_rotated])
    if attention.value_norm is not None:
        heads[:, num_rotated:] = normalise(attention.value_norm, heads[:, num_rotated:])
    if by is not None:
        rotate(heads[:, :num_rotated], by)
        if by.query_factors is not None:
            heads[:, :num_heads] *= by.query_factors
    if not attention.shares_cache:
        key_scales, value_scales = out_cache.scales or (None, None)
        _store(heads[:, num_heads:num_rotated], slots, out_cache.keys, key_scales)
        _store(heads[:, num_rotated:], slots, out_cache.values, value_scales)


def _store(heads: Float32, slots: Int32, cache: NDArray[Any], scales: NDArray[np.float16] | None) -> None:
    """Put ``heads`` [T, kv_heads, D] into KV slots of the keys or the values of a layer."""
    stored: NDArray[Any] = heads
    if scales is not None:
        stored, scales.reshape(-1, heads.shape[1])[slots] = quantise(heads)
    cache.reshape(-1, *heads.shape[1:])[slots] = stored
