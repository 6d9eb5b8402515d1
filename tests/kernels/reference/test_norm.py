"""kernels.reference.norm against float64 formulas."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.reference.matmul import Linear, linear
from kernels.reference.norm import (
    linear_norm_residual,
    norm_branches,
    norm_geglu,
    norm_gelu,
    norm_head,
    norm_linear,
    norm_stream,
    norm_swiglu,
    normalise,
)
from kernels.weights.parameters import LayerNorm, Norm, RmsNorm
from tests.kernels.reference.test_matmul import make_matrix

RNG = np.random.default_rng(0)
WEIGHT, BIAS = (RNG.normal(size=64).astype(np.float32) for _ in range(2))
RMS, LAYER = RmsNorm(WEIGHT, 1e-5), LayerNorm(WEIGHT, BIAS, 1e-5)


def exact(norm: Norm, x: np.ndarray) -> np.ndarray:
    x = x.astype(np.float64)
    if isinstance(norm, LayerNorm):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + norm.epsilon) * WEIGHT + BIAS
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + norm.epsilon) * WEIGHT


@pytest.mark.parametrize("norm", [RMS, LAYER], ids=["rms", "layer"])
def test_norms_follow_their_formula_row_by_row(norm: Norm) -> None:
    x = (RNG.normal(size=(9, 64)) * 5 + 1).astype(np.float32)
    np.testing.assert_allclose(normalise(norm, x), exact(norm, x), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(normalise(norm, x), np.concatenate([normalise(norm, row[None]) for row in x]))
    zeros = np.zeros((1, 64), np.float32)
    np.testing.assert_array_equal(normalise(norm, zeros), exact(norm, zeros).astype("f4"))
    expected = normalise(norm, x)
    norm_stream(x, norm, out=x)
    np.testing.assert_array_equal(x, expected)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def test_fused_projections_are_the_norm_and_then_the_layer() -> None:
    x = RNG.normal(size=(5, 64)).astype(np.float32)
    gate, up = (make_matrix(RNG.normal(size=(24, 64))) for _ in range(2))
    gated, lifted = (exact(RMS, x) @ matrix.rows(slice(None)).T for matrix in (gate, up))
    out = np.empty((5, 48), np.float32)
    norm_linear(x, RMS, (Linear(gate), Linear(up)), out=out)
    np.testing.assert_allclose(out, np.concatenate([gated, lifted], axis=1), atol=1e-4)
    out = np.empty((5, 24), np.float32)
    norm_swiglu(x, RMS, (Linear(gate), Linear(up)), out=out)
    np.testing.assert_allclose(out, silu(gated) * lifted, rtol=1e-4, atol=1e-4)
    fused = make_matrix(np.concatenate([gate.rows(slice(None)), up.rows(slice(None))]))
    split = out.copy()
    norm_swiglu(x, RMS, (Linear(fused),), out=out)
    np.testing.assert_allclose(out, split, rtol=1e-5, atol=1e-5)
    norm_gelu(x, RMS, (Linear(gate),), out=out)
    inner = np.sqrt(2 / np.pi) * (gated + 0.044715 * gated**3)
    np.testing.assert_allclose(out, 0.5 * gated * (1 + np.tanh(inner)), rtol=1e-4, atol=1e-4)
    norm_geglu(x, RMS, (Linear(gate), Linear(up)), 0.25, out=out)
    np.testing.assert_allclose(out, 0.125 * gated * (1 + np.tanh(inner)) * lifted, rtol=1e-4, atol=1e-4)


def test_the_head_sees_the_rows_that_are_asked_for() -> None:
    x = RNG.normal(size=(7, 64)).astype(np.float32)
    head = Linear(make_matrix(RNG.normal(size=(30, 64))))
    out = np.empty((3, 30), np.float32)
    norm_head(x, np.array([6, 0, 6], np.int32), RMS, (head,), out=out)
    np.testing.assert_allclose(out, exact(RMS, x[[6, 0, 6]]) @ head.matrix.rows(slice(None)).T, atol=1e-4)


def test_a_branch_is_normed_before_it_is_added_to_the_residual_stream() -> None:
    x, before = RNG.normal(size=(5, 24)).astype(np.float32), RNG.normal(size=(5, 64)).astype(np.float32)
    matrix = make_matrix(RNG.normal(size=(64, 24)))
    stream = before.copy()
    linear_norm_residual(x, (Linear(matrix),), RMS, out=stream)
    expected = before + exact(RMS, x @ matrix.rows(slice(None)).T)
    np.testing.assert_allclose(stream, expected, rtol=1e-4, atol=1e-4)


def test_a_soft_cap_bounds_logits_and_leaves_small_ones_nearly_alone() -> None:
    x = RNG.normal(size=(4, 64)).astype(np.float32) * 3
    head = Linear(make_matrix(RNG.normal(size=(30, 64))))
    rows = np.arange(4, dtype=np.int32)
    plain, capped = (np.empty((4, 30), np.float32) for _ in range(2))
    norm_head(x, rows, RMS, (head,), out=plain)
    norm_head(x, rows, RMS, (head,), softcap=5.0, out=capped)
    np.testing.assert_allclose(capped, 5 * np.tanh(plain.astype(np.float64) / 5), atol=1e-5)
    assert np.abs(capped).max() <= 5 < np.abs(plain).max()


def test_the_stream_is_scaled_once_the_norm_is_added() -> None:
    x, stream = (RNG.normal(size=(3, 64)).astype(np.float32) for _ in range(2))
    layer = Linear(make_matrix(RNG.normal(size=(64, 64))))
    added, scaled = stream.copy(), stream.copy()
    linear_norm_residual(x, (layer,), RMS, out=added)
    linear_norm_residual(x, (layer,), RMS, scale=0.5, out=scaled)
    np.testing.assert_array_equal(scaled, added / 2)


def test_a_narrow_norm_is_one_of_each_group_of_columns() -> None:
    x = RNG.normal(size=(3, 64)).astype(np.float32)
    layer, norm = Linear(make_matrix(RNG.normal(size=(64, 64)))), RmsNorm(WEIGHT[:16], 1e-5)
    out, branch = np.zeros((3, 64), np.float32), np.empty((3, 64), np.float32)
    linear_norm_residual(x, (layer,), norm, out=out)
    linear(x, (layer,), out=branch)
    np.testing.assert_array_equal(out, normalise(norm, branch.reshape(12, 16)).reshape(3, 64))


def test_two_branches_are_normed_each_and_together() -> None:
    a, b, stream = (RNG.normal(size=(5, 64)).astype(np.float32) * size for size in (3, 0.1, 1))
    out = stream.copy()
    norm_branches(a, RMS, b, RmsNorm(BIAS, 1e-3), RMS, scale=0.5, out=out)
    second = b / np.sqrt((b.astype(np.float64) ** 2).mean(-1, keepdims=True) + 1e-3) * BIAS
    np.testing.assert_allclose(out, 0.5 * (stream + exact(RMS, exact(RMS, a) + second)), rtol=1e-4, atol=1e-5)
