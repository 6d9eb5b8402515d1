"""Products on unpacked weights: the same bits as on packed ones, and when they are chosen."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.ops.matmul_params import Epilogue
from kernels.ops.unpacked.unpacked_matmul import (
    LARGEST_SIZE,
    SUMMING_SIZES,
    is_suitable,
    multiply_unpacked,
    unpacked_ring,
    unpacked_shape,
)
from kernels.runtime.gpu_spec import A100, H100
from kernels.weights.half_copy import UNPACKED_FORMATS
from kernels.weights.packed import PackedMatrix
from tests.kernels.conftest import Download, Upload
from tests.kernels.ops.product_case import (
    check_epilogue,
    check_same_bits,
    check_shapes,
    load,
    matrix_of,
    need_wgmma,
    product_of,
)

SIZES = (*SUMMING_SIZES, LARGEST_SIZE)


def sizes_of(matrix: PackedMatrix) -> tuple[int, ...]:
    return SIZES if matrix.num_partitions == 1 else SUMMING_SIZES


@pytest.mark.gpu
@pytest.mark.sanitize("(896, 768)-Q4_K")
@pytest.mark.parametrize("name", UNPACKED_FORMATS)
@pytest.mark.parametrize("shape", [(896, 768), (1000, 256), (36000, 256)], ids=str)
def test_outputs_have_the_bits_of_the_kernels_that_unpack_in_registers(
    device: CudaDevice, upload: Upload, download: Download, name: str, shape: tuple[int, int]
) -> None:
    need_wgmma(device)
    matrix = load(device, name, shape)
    assert matrix.num_partitions == 1 or shape[0] < 30_000
    check_same_bits(device, upload, download, matrix, multiply_unpacked, sizes_of(matrix))


@pytest.mark.gpu
@pytest.mark.sanitize("*-16-1.0")
@pytest.mark.parametrize("alpha", [1.0, 1.7])
@pytest.mark.parametrize("column", [8, 16])
@pytest.mark.parametrize("epilogue", Epilogue)
def test_every_epilogue_gives_the_same_bits_beside_what_else_is_there(
    device: CudaDevice, upload: Upload, download: Download, epilogue: Epilogue, column: int, alpha: float
) -> None:
    check_epilogue(device, upload, download, epilogue, column, alpha, multiply_unpacked, sizes_of)


@pytest.mark.parametrize("size", SIZES)
def test_a_block_fits_the_shared_memory_of_a_gpu_that_has_its_instructions(size: int) -> None:
    assert unpacked_ring(size).num_bytes <= H100.shared_bytes
    assert unpacked_ring(size).stages >= 4


def test_outputs_that_cannot_be_stored_16_bytes_at_a_time_and_other_gpus_have_the_other_kernels() -> None:
    matrix = matrix_of("Q4_K", 1000, 256)
    assert is_suitable(H100, product_of(matrix, 4096))
    assert not is_suitable(A100, product_of(matrix, 4096))
    assert not is_suitable(H100, product_of(matrix, 4096, stride=1002))
    assert not is_suitable(H100, product_of(matrix, 4096, stride=2000, column=2))
    assert not is_suitable(H100, product_of(matrix_of("Q4_K", 1001, 256), 4096, stride=1004))
    assert not is_suitable(H100, product_of(matrix, 4096, stride=1004, dtype=np.float16))
    assert not is_suitable(H100, product_of(matrix, 4096, stride=2000, column=4, dtype=np.float16))
    assert not is_suitable(H100, product_of(matrix_of("MXFP4", 1000, 256), 4096))
    assert not is_suitable(H100, product_of(matrix_of("Q4_K", 60_000, 8192), 4096)), "a gigabyte of scratch memory"


def test_the_shape_is_the_same_between_the_numbers_of_tokens_that_memory_is_planned_at() -> None:
    for num_rows, width in ((896, 4864), (9728, 896), (3072, 8192), (16384, 3072)):
        matrix = matrix_of("Q8_0", num_rows, width)
        check_shapes(partial(unpacked_shape, H100, matrix), range(512, 8193))
