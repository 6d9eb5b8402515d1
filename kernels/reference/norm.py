"""Normalisation, alone and fused with what consumes it: projections, or the first half of a feed-forward block."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kernels.reference.activation import geglu, gelu, soft_cap, swiglu
from kernels.reference.matmul import Linear, linear
from kernels.weights.parameters import LayerNorm, Norm

Float32 = NDArray[np.float32]


def normalise(norm: Norm[Float32], x: Float32) -> Float32:
    """``x`` [..., H] contiguous -> the same shape."""
    if isinstance(norm, LayerNorm):
        centred = x - _mean(x)
        variance = _mean(centred * centred)
        normed: Float32 = centred / np.sqrt(variance + np.float32(norm.epsilon)) * norm.weight + norm.bias
    else:
        normed = x / np.sqrt(_mean(x * x) + np.float32(norm.epsilon)) * norm.weight
    return normed


def _mean(rows: Float32) -> Float32:
    """``np.mean`` of each row, [..., 1], without what that spends on other types: small models have many small rows."""
    sums: Float32 = np.add.reduce(rows, axis=-1, keepdims=True)
    return sums / np.float32(rows.shape[-1])


def norm_stream(x: Float32, norm: Norm[Float32], *, out: Float32) -> None:
    """The norm of each row of ``x`` [T, H]; ``out`` may be ``x``."""
    out[:] = normalise(norm, x)


def linear_norm_residual(
    x: Float32, layers: Sequence[Linear], norm: Norm[Float32], *, scale: float = 1.0, out: Float32
) -> None:
    """Add ``layers`` of ``x`` [T, K], normed, to the residual stream ``out`` [T, H], all of it times ``scale``.

    A norm that is narrower than H is one of each group of so many columns.
    """
    branch = np.empty_like(out)
    linear(x, layers, out=branch)
    groups = branch.reshape(-1, norm.weight.shape[0])
    out += normalise(norm, groups).reshape(out.shape)
    out *= np.float32(scale)


def norm_branches(
    a: Float32,
    norm_a: Norm[Float32],
    b: Float32,
    norm_b: Norm[Float32],
    norm: Norm[Float32],
    *,
    scale: float = 1.0,
    out: Float32,
) -> None:
    """Add the norm of the sum of two normed branches ``a`` and ``b`` [T, H] to the residual stream ``out`` [T, H].

    All of the stream is then multiplied by ``scale``.
    """
    out += normalise(norm, normalise(norm_a, a) + normalise(norm_b, b))
    out *= np.float32(scale)


def norm_linear(x: Float32, norm: Norm[Float32], layers: Sequence[Linear], *, out: Float32) -> None:
    """Norm and projections (QKV): ``x`` [T, H] -> ``out`` [T, sum of outputs], the layers' outputs side by side."""
    linear(normalise(norm, x), layers, out=out)


def norm_swiglu(x: Float32, norm: Norm[Float32], gate_up: Sequence[Linear], *, out: Float32) -> None:
    """Norm, gate and up projections, silu(gate) * up: ``x`` [T, H] -> ``out`` [T, F].

    ``gate_up`` are two layers of F outputs or a fused one of 2 F, gate first.
    """
    both = np.empty((x.shape[0], 2 * out.shape[1]), np.float32)
    linear(normalise(norm, x), gate_up, out=both)
    swiglu(both[:, : out.shape[1]], both[:, out.shape[1] :], out=out)


def norm_geglu(x: Float32, norm: Norm[Float32], gate_up: Sequence[Linear], scale: float, *, out: Float32) -> None:
    """Norm, gate and up projections, gelu(gate) * up * scale: ``x`` [T, H] -> ``out`` [T, F].

    ``gate_up`` are as in `norm_swiglu`. The ``scale`` keeps the product within what a device's type for activations
    holds; what consumes it must make up for it.
    """
    both = np.empty((x.shape[0], 2 * out.shape[1]), np.float32)
    linear(normalise(norm, x), gate_up, out=both)
    geglu(both[:, : out.shape[1]], both[:, out.shape[1] :], scale, out=out)


def norm_gelu(x: Float32, norm: Norm[Float32], up: Sequence[Linear], *, out: Float32) -> None:
    """Norm, up projection, GELU: ``x`` [T, H] -> ``out`` [T, F]."""
    linear(normalise(norm, x), up, out=out)
    gelu(out, out=out)


def norm_head(
    x: Float32,
    rows: NDArray[np.int32],
    norm: Norm[Float32],
    head: Sequence[Linear],
    *,
    softcap: float = 0.0,
    out: Float32,
) -> None:
    """Final norm and output head on some rows: ``x`` [T, H], ``rows`` [R] -> logits ``out`` [R, V].

    With a ``softcap`` they are softcap * tanh(logits / softcap), and so within +-softcap (Gemma 2).
    """
    linear(normalise(norm, x[rows]), head, out=out)
    if softcap:
        soft_cap(out, softcap)
