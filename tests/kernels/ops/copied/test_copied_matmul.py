"""Products on float16 copies of weights: the same bits as on packed ones, and when they are chosen."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.ops.copied.copied_matmul import SIZES, copied_ring, copied_shape, is_suitable, multiply_copied
from kernels.ops.matmul_params import Epilogue
from kernels.runtime.gpu_spec import A100, H100
from kernels.weights.half_copy import UNPACKED_FORMATS
from tests.kernels.conftest import Download, Upload
from tests.kernels.ops.product_case import (
    check_epilogue,
    check_same_bits,
    check_shapes,
    copied_matrix_of,
    copies_first,
    load,
    matrix_of,
    need_wgmma,
    product_of,
)


@pytest.mark.gpu
@pytest.mark.sanitize("(896, 768)-Q4_K")
@pytest.mark.parametrize("name", UNPACKED_FORMATS)
@pytest.mark.parametrize("shape", [(896, 768), (1000, 256), (36000, 256)], ids=str)
def test_outputs_have_the_bits_of_the_kernels_that_unpack_in_registers(
    device: CudaDevice, upload: Upload, download: Download, name: str, shape: tuple[int, int]
) -> None:
    need_wgmma(device)
    matrix = load(device, name, shape, copied=True)
    assert matrix.num_partitions == 1 or shape[0] < 30_000
    check_same_bits(device, upload, download, matrix, multiply_copied, SIZES)


@pytest.mark.gpu
@pytest.mark.sanitize("*-16-1.0")
@pytest.mark.parametrize("alpha", [1.0, 1.7])
@pytest.mark.parametrize("column", [8, 16])
@pytest.mark.parametrize("epilogue", Epilogue)
def test_every_epilogue_gives_the_same_bits_beside_what_else_is_there(
    device: CudaDevice, upload: Upload, download: Download, epilogue: Epilogue, column: int, alpha: float
) -> None:
    check_epilogue(device, upload, download, epilogue, column, alpha, copies_first(multiply_copied), lambda _: SIZES)


@pytest.mark.parametrize("size", SIZES)
def test_a_block_fits_the_shared_memory_of_a_gpu_that_has_its_instructions(size: int) -> None:
    assert copied_ring(size).num_bytes <= H100.shared_bytes
    assert copied_ring(size).stages >= 4


def test_few_tokens_and_outputs_that_cannot_be_stored_16_bytes_at_a_time_have_the_other_kernels() -> None:
    matrix = copied_matrix_of("Q4_K", 1000, 512)
    assert is_suitable(H100, product_of(matrix, 256))
    assert not is_suitable(H100, product_of(matrix_of("Q4_K", 1000, 512), 256)), "it has no copy"
    assert not is_suitable(A100, product_of(matrix, 256))
    assert not is_suitable(H100, product_of(matrix, 64)) and not is_suitable(H100, product_of(matrix, 1025))
    assert not is_suitable(H100, product_of(copied_matrix_of("Q4_K", 36_000, 256), 256)), "stream-K is as fast"
    assert not is_suitable(H100, product_of(matrix, 256, stride=1002))
    assert not is_suitable(H100, product_of(matrix, 256, stride=2000, column=2))
    assert not is_suitable(H100, product_of(copied_matrix_of("Q4_K", 1001, 512), 256, stride=1004))
    assert not is_suitable(H100, product_of(matrix, 256, stride=1004, dtype=np.float16))


def test_the_shape_is_the_same_between_the_numbers_of_tokens_that_memory_is_planned_at() -> None:
    for num_rows, width in ((896, 4864), (9728, 896), (3072, 8192), (16384, 3072)):
        matrix = copied_matrix_of("Q8_0", num_rows, width)
        check_shapes(partial(copied_shape, H100, matrix), range(128, 1025))


def test_tiles_are_as_many_as_there_are_multiprocessors_where_that_takes_least_time() -> None:
    assert copied_shape(H100, copied_matrix_of("Q5_0", 9728, 896), 256).size == 160
    assert copied_shape(H100, copied_matrix_of("Q5_K", 9216, 3072), 256).size == 144
    assert copied_shape(H100, copied_matrix_of("Q5_0", 1152, 896), 256).size in (32, 48)
    assert copied_shape(H100, copied_matrix_of("Q4_K", 6144, 4096), 512).size == 192
