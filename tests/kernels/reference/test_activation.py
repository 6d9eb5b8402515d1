"""kernels.reference.activation at its limits."""

from __future__ import annotations

import numpy as np

from kernels.reference.activation import clamped_swiglu, gate, geglu_columns, gelu, narrow, soft_cap, swiglu


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


def test_gates_let_through_some_columns_of_what_lies_beside() -> None:
    rng = np.random.default_rng(0)
    gates, inputs = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(3, 12)).astype(np.float32)
    out, expected = np.empty((3, 4), np.float32), np.empty((3, 4), np.float32)
    geglu_columns(gates, inputs, 4, 2.0, 0.25, out=out)
    gelu(gates * 2, out=expected)
    np.testing.assert_allclose(out, expected * inputs[:, 4:8] / 4, rtol=1e-6)


def test_narrowing_scales_and_a_soft_cap_bounds() -> None:
    x = np.array([[-1e6, -1.0, 0.0, 0.5, 1e6]], np.float32)
    out = np.empty_like(x)
    narrow(x, 0.0625, out=out)
    np.testing.assert_array_equal(out, x / 16)
    soft_cap(x, 4.0)
    np.testing.assert_allclose(x, [[-4, 4 * np.tanh(-0.25), 0, 4 * np.tanh(0.125), 4]], rtol=1e-6)


def test_a_gate_lets_through_between_nothing_and_all() -> None:
    x = np.array([[2.0, 2.0, 2.0, -3.0]], np.float32)
    gate(x, np.array([[-1e30, 0.0, 1e30, 1.0]], np.float32), out=x)
    np.testing.assert_allclose(x, [[0, 1, 2, -3 / (1 + np.exp(-1))]], rtol=1e-6)
