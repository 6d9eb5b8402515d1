"""Random matrices on the device and none, and the outputs of other kernels than `multiply_tiled` against its."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.devices.cuda import CudaDevice
from kernels.ops.matmul import multiply_tiled
from kernels.ops.matmul_params import Epilogue, Product
from kernels.ops.matmul_tuning import SHAPES_APART
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context
from kernels.weights.formats import FORMATS
from kernels.weights.half_copy import HalfCopies, half_shape, unpack
from kernels.weights.packed import PackedMatrix
from kernels.weights.weight_store import PackedWeightStore
from tests.kernels.conftest import Download, Upload
from tests.kernels.ops.random_weights import random_weight

NUM_TOKENS = 170
"""Of `check_epilogue`."""


def load(
    device: CudaDevice, name: str, shape: tuple[int, int], *, gated: bool = False, copied: bool = False
) -> PackedMatrix:
    """A random matrix with a bias; ``copied``: and with a float16 copy."""
    copies = HalfCopies(device.weights, lambda _number, _matrix: copied)
    store = PackedWeightStore(device.context, device.weights, copies=copies)
    weight = random_weight(name, shape, np.random.default_rng(1), bias=True)
    (matrix,) = (store.gate_up if gated else store.projection)([weight]).matrices
    assert store.load(lambda _done, _total: None) == []
    return matrix


def matrix_of(name: str, num_rows: int, width: int) -> PackedMatrix:
    """One without memory."""
    return PackedMatrix(FORMATS[name], num_rows, width, 1, False, DeviceArray(0, (0,), np.dtype(np.uint8)), None, None)


def copied_matrix_of(name: str, num_rows: int, width: int) -> PackedMatrix:
    """One with a float16 copy, without memory."""
    matrix = matrix_of(name, num_rows, width)
    return replace(matrix, half_copy=DeviceArray(0, half_shape(matrix), np.dtype(np.float16)))


def product_of(
    matrix: PackedMatrix, num_tokens: int, stride: int | None = None, column: int = 0, dtype: type = np.float32
) -> Product:
    """One without memory."""
    x = DeviceArray(0, (num_tokens, matrix.width), np.dtype(np.float16))
    out = DeviceArray(0, (num_tokens, stride or matrix.num_rows), np.dtype(dtype))
    return Product(x, matrix, out, Epilogue.STORE_FLOAT if dtype is np.float32 else Epilogue.STORE_HALF, column)


def need_wgmma(device: CudaDevice) -> None:
    if not device.gpu.has_wgmma:
        pytest.skip("the kernels are for Hopper")


def copies_first(multiply: Callable[[Context, Product, int], None]) -> Callable[[Context, Product, int], None]:
    """``multiply`` by a matrix that gets its float16 copy before."""

    def copy_and_multiply(context: Context, product: Product, size: int) -> None:
        half_copy = context.scratch(half_shape(product.matrix), np.float16)
        unpack(context, product.matrix, half_copy)
        context.stream.synchronise()  # products read constants before the previous kernel is done
        multiply(context, product._replace(matrix=replace(product.matrix, half_copy=half_copy)), size)

    return copy_and_multiply


def check_same_bits(
    device: CudaDevice,
    upload: Upload,
    download: Download,
    matrix: PackedMatrix,
    multiply: Callable[[Context, Product, int], None],
    sizes: Iterable[int],
) -> None:
    """``multiply`` with tiles of each of ``sizes`` gives the bits of `multiply_tiled`, of many tokens."""
    num_tokens = 70 if matrix.num_rows > 30_000 else 300
    x = upload(np.random.default_rng(2).normal(size=(num_tokens, matrix.width)).astype(np.float16))

    def run(multiply: Callable[..., None], *size: int) -> NDArray[np.float32]:
        out = upload(np.full((num_tokens, matrix.num_rows), np.nan, np.float32))
        multiply(device.context, Product(x, matrix, out, Epilogue.STORE_FLOAT), *size)
        return download(out)

    expected = run(multiply_tiled)
    for size in sizes:
        np.testing.assert_array_equal(run(multiply, size), expected, err_msg=f"tiles of {size}")


def check_shapes(choose: Callable[[int], object], tokens: range) -> None:
    """What is chosen for numbers of ``tokens`` changes behind those that memory is planned at, and nowhere else."""
    shapes = {count: choose(count) for count in tokens}
    changes = {count for count in tokens[:-1] if shapes[count] != shapes[count + 1]}
    assert changes and all(count % SHAPES_APART == 0 for count in changes)


def check_epilogue(
    device: CudaDevice,
    upload: Upload,
    download: Download,
    epilogue: Epilogue,
    column: int,
    alpha: float,
    multiply: Callable[..., None],
    choices: Callable[[PackedMatrix], Iterable[Any]],
) -> None:
    """With each of its ``choices`` ``multiply`` has the bits of `multiply_tiled`, and leaves what is beside them."""
    need_wgmma(device)
    num_rows, stride = 272, 600
    rng = np.random.default_rng(3)
    matrix = load(device, "Q5_0", (num_rows, 512), gated=epilogue.is_gated)
    x = upload(rng.normal(size=(NUM_TOKENS, 512)).astype(np.float16))
    is_float = epilogue in (Epilogue.STORE_FLOAT, Epilogue.ADD_RESIDUAL, Epilogue.SOFTCAP)
    before = rng.normal(size=(NUM_TOKENS, stride)).astype(np.float32 if is_float else np.float16)

    def run(multiply: Callable[..., None], *arguments: Any) -> NDArray[Any]:
        out = upload(before)
        product = Product(x, matrix, out, epilogue, column, alpha=alpha, limit=0.5)
        multiply(device.context, product, *arguments)
        return download(out)

    expected = run(multiply_tiled)
    num_outputs = num_rows // 2 if epilogue.is_gated else num_rows
    assert (expected != before)[:, column : column + num_outputs].mean() > 0.9
    for choice in choices(matrix):
        np.testing.assert_array_equal(run(multiply, choice), expected, err_msg=str(choice))
