"""Products of which a block has several partitions at once: the same bits as in whole tiles, and when it is chosen."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.ops.matmul import multiply_tiled
from kernels.ops.matmul_params import Epilogue, Product
from kernels.ops.sliced_k.sliced_k_matmul import (
    SIZES,
    SLICED_FORMATS,
    is_suitable,
    multiply_sliced_k,
    sizes_of,
    sliced_k_shape,
)
from kernels.runtime.gpu_spec import A100, H100
from kernels.weights.formats import FORMATS
from tests.kernels.conftest import Download, Upload
from tests.kernels.ops.product_case import check_epilogue, check_shapes, load, matrix_of, need_wgmma, product_of

# racecheck does not follow the barriers by which a warpgroup hands the total of a tile on to the next.
RACECHECK = "racecheck"


@pytest.mark.gpu
@pytest.mark.sanitize("(900, 1280)-Q4_K", but=RACECHECK)
@pytest.mark.parametrize("name", SLICED_FORMATS)
@pytest.mark.parametrize("shape", [(896, 4864), (900, 1280), (1152, 896), (64, 512)], ids=str)
def test_outputs_have_the_bits_of_whole_tiles_for_any_number_of_tokens(
    device: CudaDevice, upload: Upload, download: Download, name: str, shape: tuple[int, int]
) -> None:
    need_wgmma(device)
    if shape[1] % 256 and name in ("Q4_K", "Q5_K", "Q6_K"):
        pytest.skip("its rows are no whole blocks")
    matrix = load(device, name, shape)
    x = np.random.default_rng(2).normal(size=(300, shape[1])).astype(np.float16)
    expected = upload(np.full((300, shape[0]), np.nan, np.float32))
    multiply_tiled(device.context, Product(upload(x), matrix, expected, Epilogue.STORE_FLOAT))
    for num_tokens in (1, 16, 33, 64, 130, 300):
        rows = upload(x[:num_tokens])
        for size in sizes_of(matrix.format):
            out = upload(np.full((num_tokens, shape[0]), np.nan, np.float32))
            device.context.begin_step()
            multiply_sliced_k(device.context, Product(rows, matrix, out, Epilogue.STORE_FLOAT), size)
            np.testing.assert_array_equal(
                download(out), download(expected)[:num_tokens], err_msg=f"{num_tokens} in tiles of {size}"
            )


@pytest.mark.gpu
@pytest.mark.sanitize("*-16-1.0", but=RACECHECK)
@pytest.mark.parametrize("alpha", [1.0, 1.7])
@pytest.mark.parametrize("column", [4, 16])
@pytest.mark.parametrize("epilogue", [kind for kind in Epilogue if not kind.is_gated])
def test_every_epilogue_gives_the_same_bits_beside_what_else_is_there(
    device: CudaDevice, upload: Upload, download: Download, epilogue: Epilogue, column: int, alpha: float
) -> None:
    check_epilogue(
        device, upload, download, epilogue, column, alpha, multiply_sliced_k, lambda matrix: sizes_of(matrix.format)
    )


def test_other_gpus_formats_and_outputs_have_other_kernels() -> None:
    matrix = matrix_of("Q4_K", 896, 4864)
    assert is_suitable(H100, product_of(matrix, 256))
    assert not is_suitable(A100, product_of(matrix, 256))
    assert not is_suitable(H100, product_of(matrix, 256, stride=902)), "rows that are not aligned"
    assert not is_suitable(H100, product_of(matrix, 256, stride=1000, column=2))
    assert not is_suitable(H100, product_of(matrix_of("MXFP4", 896, 4864), 256))
    assert not is_suitable(H100, product_of(matrix_of("Q4_K", 28672, 4096), 256)), "of one partition"


def test_each_format_has_tiles_that_shared_memory_has_room_for() -> None:
    for name in SLICED_FORMATS:
        assert set(SIZES[:-1]) <= set(sizes_of(FORMATS[name])) <= set(SIZES)


def test_the_shape_is_the_same_between_the_numbers_of_tokens_that_memory_is_planned_at() -> None:
    for num_rows, width in ((896, 4864), (1152, 896), (3072, 8192)):
        matrix = matrix_of("Q8_0", num_rows, width)
        check_shapes(partial(sliced_k_shape, H100, matrix), range(64, 1025))
