"""Activation functions of feed-forward blocks, float32 and element by element."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def swiglu(gate: Float32, up: Float32, *, out: Float32) -> None:
    """silu(gate) * up (Shazeer, "GLU variants improve transformer", 2020); all [T, F]."""
    np.multiply(silu(gate), up, out=out)


def silu(x: Float32) -> Float32:
    """The sigmoid linear unit, x * sigmoid(x) (Hendrycks & Gimpel, 2016)."""
    with np.errstate(over="ignore"):  # exp of a large number is inf, and its reciprocal the right zero
        result: Float32 = x / (1 + np.exp(-x))
    return result


def clamped_swiglu(gate: Float32, up: Float32, alpha: float, limit: float, *, out: Float32) -> None:
    """SwiGLU with bounds: gate * sigmoid(alpha * gate) * (up + 1); all [T, F].

    Gate is at most ``limit``, up within +-``limit``. As in OpenAI's gpt-oss (gpt_oss/torch/model.py: swiglu), alpha
    1.702, limit 7.
    """
    gate = np.minimum(gate, np.float32(limit))
    up = np.clip(up, np.float32(-limit), np.float32(limit))
    with np.errstate(over="ignore"):
        np.multiply(gate / (1 + np.exp(np.float32(-alpha) * gate)), up + 1, out=out)


def geglu(gate: Float32, up: Float32, scale: float, *, out: Float32) -> None:
    """gelu(gate) * up * scale, GELU in its tanh form (Shazeer, 2020); all [T, F]; ``out`` may be ``gate``."""
    gelu(gate, out=out)
    np.multiply(out, up, out=out)
    out *= np.float32(scale)


def geglu_columns(
    gates: Float32, inputs: Float32, column: int, gate_scale: float, scale: float, *, out: Float32
) -> None:
    """GEGLU of ``gates`` [T, P] times ``gate_scale`` and of ``inputs`` [T, ...] from ``column`` on -> ``out`` [T, P].

    The result is multiplied by ``scale``.
    """
    geglu(gates * np.float32(gate_scale), inputs[:, column : column + out.shape[1]], scale, out=out)


def narrow(x: Float32, scale: float, *, out: Float32) -> None:
    """``x`` times ``scale`` in the type of activations, ``out``: on other devices it may hold less than ``x``."""
    np.multiply(x, np.float32(scale), out=out)


def gelu(x: Float32, *, out: Float32) -> None:
    """GELU in its tanh form, "gelu_new" (Hendrycks & Gimpel, 2016); ``out`` may be ``x``."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * (x * x * x))
    np.multiply(np.float32(0.5) * x, 1 + np.tanh(inner), out=out)


def gate(x: Float32, gates: Float32, *, out: Float32) -> None:
    """``x`` times sigmoid(``gates``), both [T, W]; ``out`` may be ``x``.

    What attention found goes through such a gate in Qwen3-Next and its kin (Qiu et al., "Gated attention", 2025).
    """
    np.multiply(x, sigmoid(gates), out=out)


def sigmoid(x: Float32) -> Float32:
    """1 / (1 + exp(-x))."""
    with np.errstate(over="ignore"):
        result: Float32 = np.reciprocal(1 + np.exp(-x))
    return result


def soft_cap(x: Float32, cap: float) -> None:
    """Bound ``x`` by +-``cap``, in place: cap * tanh(x / cap) (Gemma 2, 2024)."""
    x /= np.float32(cap)
    np.tanh(x, out=x)
    x *= np.float32(cap)
