"""kernels.ops.activation against its NumPy reference."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.ops.activation import gate, geglu_columns, narrow, swiglu_rows
from kernels.reference.activation import clamped_swiglu, gelu, swiglu
from kernels.reference.activation import gate as reference_gate
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import H100
from kernels.runtime.launcher import Context
from kernels.weights.parameters import Clamp
from tests.kernels.conftest import Download, Empty, Upload


def halves(*shape: int) -> DeviceArray:
    return DeviceArray(0, shape, np.dtype(np.float16))


def test_gates_and_ups_of_another_width_than_the_output_are_refused() -> None:
    context = Context(H100)
    swiglu_rows(context, halves(3, 2 * 80), out=halves(3, 80))
    assert context.last_enqueued == "swiglu_rows"
    for shape in ((3, 80), (2, 2 * 80)):
        with pytest.raises(AssertionError):
            swiglu_rows(context, halves(*shape), out=halves(3, 80))


@pytest.mark.gpu
@pytest.mark.sanitize("*-300-3")
@pytest.mark.parametrize("num_rows", [1, 3, 1100])
@pytest.mark.parametrize("width", [8, 256, 300])
@pytest.mark.parametrize("clamp", [None, Clamp(1.702, 7.0)], ids=["plain", "clamped"])
def test_rows_are_the_reference_s_rounded_to_float16(
    context: Context, upload: Upload, empty: Empty, download: Download, num_rows: int, width: int, clamp: Clamp | None
) -> None:
    both = np.random.default_rng(width).normal(0, 4, (num_rows, 2 * width)).astype(np.float16)
    both[0, :4] = [-60000, -20, 20, 60000]
    both[0, width : width + 4] = 1
    out = empty((num_rows, width), np.float16)
    swiglu_rows(context, upload(both), clamp, out=out)
    expected = np.empty((num_rows, width), np.float32)
    gate, up = both[:, :width].astype(np.float32), both[:, width:].astype(np.float32)
    if clamp:
        clamped_swiglu(gate, up, clamp.alpha, clamp.limit, out=expected)
    else:
        swiglu(gate, up, out=expected)
    np.testing.assert_allclose(download(out), expected, rtol=2e-3, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.sanitize("300-3")
@pytest.mark.parametrize("num_rows", [1, 3, 1100])
@pytest.mark.parametrize("width", [8, 256, 300])
def test_gated_columns_and_narrowed_rows_are_the_reference_s(
    context: Context, upload: Upload, empty: Empty, download: Download, num_rows: int, width: int
) -> None:
    rng = np.random.default_rng(width)
    gates = rng.normal(0, 1, (num_rows, width)).astype(np.float32)
    inputs = rng.normal(0, 4, (num_rows, 3 * width)).astype(np.float32)
    out, expected = empty((num_rows, width), np.float16), np.empty((num_rows, width), np.float32)
    geglu_columns(context, upload(gates), upload(inputs), width, 16.0, 0.0625, out=out)
    gelu(gates * 16, out=expected)
    expected *= inputs[:, width : 2 * width] / 16
    np.testing.assert_allclose(download(out), expected, rtol=2e-3, atol=1e-6)
    x = rng.normal(0, 1e5, (num_rows, width)).astype(np.float32)
    x[0, :2] = 1e6, 2e6
    narrow(context, upload(x), 0.0625, out=out)
    np.testing.assert_allclose(download(out), np.minimum(x / 16, 65504), rtol=1e-3, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.sanitize("300-3")
@pytest.mark.parametrize("num_rows", [1, 3, 1100])
@pytest.mark.parametrize("width", [8, 256, 300])
def test_what_goes_through_gates_is_the_reference_s(
    context: Context, upload: Upload, empty: Empty, download: Download, num_rows: int, width: int
) -> None:
    rng = np.random.default_rng(width)
    x, gates = (rng.normal(0, 4, (num_rows, width)).astype(np.float16) for _ in range(2))
    gates[0, :3] = -60000, 0, 60000
    expected, out = np.empty((num_rows, width), np.float32), upload(x)
    reference_gate(x.astype(np.float32), gates.astype(np.float32), out=expected)
    gate(context, out, upload(gates), out=out)
    np.testing.assert_allclose(download(out), expected, rtol=2e-3, atol=1e-6)
