"""Rotary position embedding (Su et al., "RoFormer", 2021), fused with the write of K and V to the paged cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from kernels.reference.norm import RmsNorm

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
Pairing = Literal["neox", "normal"]


@dataclass(frozen=True, slots=True, eq=False)
class Rope:
    """How heads are rotated: pair ``i`` of a head by position * inverse_frequencies[set, i].

    ``pairing`` "neox" takes elements i and i + P as a pair, "normal" elements 2i and 2i + 1; elements from 2P on are
    left alone. Cosine and sine are multiplied by ``attention_factor``. A model may have several sets of frequencies
    (longrope: short and long), each token then says which one is its own.
    """

    inverse_frequencies: Float32  # [sets, P]
    pairing: Pairing
    attention_factor: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Rotation:
    """Cosines and sines of a step's tokens, shared by all layers."""

    cosine: Float32  # [T, 1, P]
    sine: Float32  # [T, 1, P]
    pairing: Pairing


def rotation(positions: Int32, rope: Rope, frequency_set: Int32 | int = 0) -> Rotation:
    """Angles of ``positions`` [T], each with its ``frequency_set`` [T]."""
    # The angle is rounded to float32 as in the reference implementations; its cosine is then exact to float32.
    angles = positions[:, None].astype(np.float32) * rope.inverse_frequencies[frequency_set]
    angles = angles.astype(np.float64)[:, None]
    factor = rope.attention_factor
    return Rotation(
        (np.cos(angles) * factor).astype(np.float32), (np.sin(angles) * factor).astype(np.float32), rope.pairing
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
    head_norms: tuple[RmsNorm, RmsNorm] | None,
    num_heads: int,
    *,
    out_keys: Float32,
    out_values: Float32,
) -> None:
    """Rotate Q and K in ``qkv`` and store K and V.

    ``qkv`` [T, (num_heads + 2 * kv_heads) * D]: Q, K and V side by side; Q and K are rotated in place (``by`` None: a
    model without RoPE), after the norms of single heads if the model has such (Qwen3). Token t's K and V go to row
    ``slots[t]`` of ``out_keys`` and ``out_values``, [blocks, block_tokens, kv_heads, D].
    """
    num_kv_heads, head_dim = out_keys.shape[2:]
    heads = qkv.reshape(qkv.shape[0], num_heads + 2 * num_kv_heads, head_dim)
    if head_norms is not None:
        heads[:, :num_heads] = head_norms[0](heads[:, :num_heads])
        heads[:, num_heads:-num_kv_heads] = head_norms[1](heads[:, num_heads:-num_kv_heads])
    if by is not None:
        rotate(heads[:, :-num_kv_heads], by)
    out_keys.reshape(-1, num_kv_heads, head_dim)[slots] = heads[:, num_heads:-num_kv_heads]
    out_values.reshape(-1, num_kv_heads, head_dim)[slots] = heads[:, -num_kv_heads:]
