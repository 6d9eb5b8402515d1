"""kernels.reference.activation at its limits."""

from __future__ import annotations

import numpy as np

from kernels.reference.activation import clamped_swiglu, gelu, swiglu


def test_activations_have_the_right_limits() -> None:
    x = np.array([[-1e30, -1000, -10, 0, 10, 1000, 1e30]], np.float32)
    out = np.empty_like(x)
    swiglu(x, np.ones_like(x), out=out)
    np.testing.assert_allclose(out, [[0, 0, -4.5398e-4, 0, 9.99955, 1000, 1e30]], rtol=1e-4, atol=1e-6)
    x = np.array([[-100, -3, 0, 3, 7, 100]], np.float32)
    out = np.empty_like(x)
    gelu(x, out=out)
    np.testing.assert_allclose(out, [[0, -0.00363, 0, 2.99637, 7, 100]], atol=1e-4)


def test_the_clamped_swiglu_bounds_gate_above_and_up_on_both_sides() -> None:
    gate = np.array([[20.0, 7.0, -50.0, 1.0]], np.float32)
    up = np.array([[9.0, 7.0, -9.0, -1.0]], np.float32)
    out = np.empty_like(gate)
    clamped_swiglu(gate, up, 1.702, 7.0, out=out)
    seven = 7 / (1 + np.exp(-1.702 * 7)) * 8
    np.testing.assert_allclose(out, [[seven, seven, 0, 0]], rtol=1e-5, atol=1e-6)
