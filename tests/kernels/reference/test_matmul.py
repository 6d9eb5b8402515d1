"""kernels.reference.matmul: values, and a row's independence of its neighbours."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import gguf
import numpy as np
import pytest

from kernels.reference.matmul import Linear, Matrix, TileBudget, linear, linear_residual
from kernels.weights.formats import FORMATS


def make_matrix(weights: np.ndarray, name: str = "F32", cache_bytes: int = 1 << 20) -> Matrix:
    kind = gguf.GGMLQuantizationType[name]
    data = gguf.quants.quantize(weights.astype(np.float32), kind).view(np.uint8)
    return Matrix(FORMATS[name], weights.shape, data, TileBudget(cache_bytes))


def run(x: np.ndarray, *layers: Linear) -> np.ndarray:
    out = np.full((x.shape[0], sum(layer.matrix.shape[0] for layer in layers)), np.nan, np.float32)
    linear(x, layers, out=out)
    return out


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"])
def test_layers_side_by_side_multiply_and_add_their_bias(name: str) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(19, 64)).astype(np.float32)
    first, second = make_matrix(rng.normal(size=(40, 64)), name), make_matrix(rng.normal(size=(8, 64)), name)
    bias = rng.normal(size=40).astype(np.float32)
    expected = np.concatenate([x @ first.rows(slice(None)).T + bias, x @ second.rows(slice(None)).T], axis=1)
    np.testing.assert_allclose(run(x, Linear(first, bias), Linear(second)), expected, atol=2e-5)


def test_a_matrix_of_several_tiles_is_computed_whole_whatever_stays_in_the_cache() -> None:
    rng = np.random.default_rng(1)
    weights = rng.normal(size=(1500, 1024)).astype(np.float32)
    x = rng.normal(size=(3, 1024)).astype(np.float32)
    cached, uncached = make_matrix(weights, cache_bytes=1 << 30), make_matrix(weights, cache_bytes=0)
    assert cached.tile_outputs == 1024
    np.testing.assert_allclose(run(x, Linear(cached)), x @ weights.T, atol=1e-3)
    np.testing.assert_array_equal(run(x, Linear(cached)), run(x, Linear(uncached)))


def test_the_cache_keeps_to_its_budget() -> None:
    budget = TileBudget(100)
    assert [budget.admit(60), budget.admit(60), budget.admit(40), budget.admit(1)] == [True, False, True, False]


@pytest.mark.parametrize("num_inputs", [64, 320, 896])
def test_a_row_has_the_same_bits_alone_and_at_any_place_among_others(num_inputs: int) -> None:
    rng = np.random.default_rng(2)
    layer = Linear(make_matrix(rng.normal(size=(200, num_inputs))))
    x = rng.normal(size=(50, num_inputs)).astype(np.float32)
    alone = np.concatenate([run(row[None], layer) for row in x])
    np.testing.assert_array_equal(run(x, layer), alone)
    order = rng.permutation(50)
    np.testing.assert_array_equal(run(x[order], layer), alone[order])
    np.testing.assert_array_equal(run(x[:, ::-1][:, ::-1], layer), alone)  # strided rows


def test_no_rows_give_no_rows() -> None:
    layer = Linear(make_matrix(np.ones((4, 32))))
    assert run(np.empty((0, 32), np.float32), layer).shape == (0, 4)


def test_the_residual_stream_is_added_to() -> None:
    layer = Linear(make_matrix(np.ones((2, 32))), np.array([1, 2], np.float32))
    stream = np.full((3, 2), 10, np.float32)
    linear_residual(np.ones((3, 32), np.float32), (layer,), out=stream)
    np.testing.assert_array_equal(stream, [[43, 44]] * 3)
    linear_residual(np.ones((3, 32), np.float32), (layer,), scale=0.5, out=stream)
    np.testing.assert_array_equal(stream, [[59.5, 61]] * 3)


@pytest.mark.skipif(not Path("/proc").exists(), reason="reads /proc")
def test_tests_compute_with_one_thread() -> None:
    """OpenBLAS has its others spin between products: on a busy machine a model then takes ten times as long.

    With several test processes they inherit what the first one set; this is for a single one.
    """
    libraries = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "openblas" in line}
    names = [f"{prefix}openblas_get_num_threads{suffix}" for prefix in ("", "scipy_") for suffix in ("", "64_")]
    loaded = map(ctypes.CDLL, libraries)
    functions = [getattr(each, name) for each in loaded for name in names if hasattr(each, name)]
    assert all(count() <= int(os.environ["OPENBLAS_NUM_THREADS"]) for count in functions)
