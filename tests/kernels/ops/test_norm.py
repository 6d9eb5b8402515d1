"""Norms of rows against float64, and the same bits however many rows there are."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.ops.norm import norm_branches, norm_rows
from kernels.runtime.launcher import Context
from kernels.weights.parameters import LayerNorm, RmsNorm
from tests.kernels.conftest import Download, Empty, Upload

pytestmark = pytest.mark.gpu

MANY, EPSILON = 1500, 1e-5


@pytest.mark.parametrize("width", [64, 896, 1020, 2880, 3072, 4096])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_rows_are_normed_with_the_same_bits_among_many_and_few(
    context: Context, upload: Upload, empty: Empty, download: Download, width: int, kind: str
) -> None:
    rng = np.random.default_rng(width)
    x = rng.normal(1, 2, size=(MANY + 7, width)).astype(np.float32)
    weight, bias = rng.normal(size=(2, width)).astype(np.float32)
    norm = RmsNorm(upload(weight), EPSILON) if kind == "rms" else LayerNorm(upload(weight), upload(bias), EPSILON)
    order = rng.permutation(MANY + 7)[:MANY].astype(np.int32)
    rows, found = upload(order), {}
    for num_rows in (1, 3, 300, MANY):
        out = empty((num_rows, width), np.float16)
        norm_rows(context, upload(x), norm, rows=rows.first(num_rows), out=out)
        found[num_rows] = download(out)
    assert [n for n in found if not np.array_equal(found[n], found[MANY][:n])] == []

    exact = x[order].astype(np.float64)
    if kind == "layer":
        exact -= exact.mean(axis=1, keepdims=True)
    exact *= weight / np.sqrt((exact**2).mean(axis=1, keepdims=True) + EPSILON)
    np.testing.assert_allclose(found[MANY], exact + bias if kind == "layer" else exact, rtol=1e-3, atol=1e-4)

    out = empty((MANY, width), np.float16)
    norm_rows(context, upload(x), norm, rows=None, out=out)
    in_order = download(out)
    inside = order < MANY
    np.testing.assert_array_equal(in_order[order[inside]], found[MANY][inside])


@pytest.mark.sanitize("896")
@pytest.mark.parametrize("width", [64, 896, 2816, 5376])
def test_two_branches_are_normed_each_and_together(
    context: Context, upload: Upload, download: Download, width: int
) -> None:
    rng = np.random.default_rng(width)
    a, b, stream = (rng.normal(0, size, (40, width)).astype(np.float32) for size in (1e4, 0.1, 1))
    weights = rng.normal(size=(3, width)).astype(np.float32)
    norms = [RmsNorm(upload(weight), EPSILON) for weight in weights]
    found = {}
    for num_rows in (1, 40):
        out = upload(stream[:num_rows])
        pair = upload(a[:num_rows]), norms[0], upload(b[:num_rows]), norms[1]
        norm_branches(context, *pair, norms[2], scale=0.5, out=out)
        found[num_rows] = download(out)
    np.testing.assert_array_equal(found[1], found[40][:1])

    def normed(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        result: np.ndarray = x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True) + EPSILON) * weight
        return result

    expected = (stream + normed(normed(a, weights[0]) + normed(b, weights[1]), weights[2])) / 2
    np.testing.assert_allclose(found[40], expected, rtol=1e-4, atol=1e-4)
