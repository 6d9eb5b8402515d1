"""Products on copies whose blocks have several partitions at once: the same bits, and when they are chosen."""

from __future__ import annotations

from functools import partial

import pytest

from kernels.devices.cuda import CudaDevice
from kernels.ops.copied.copied_slices import SLICED_SIZES, is_suitable, multiply_sliced_copy, shared_bytes, sliced_shape
from kernels.ops.matmul_params import Epilogue
from kernels.runtime.gpu_spec import H100
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
@pytest.mark.parametrize("shape", [(896, 768), (896, 4864), (1000, 512)], ids=str)
def test_outputs_have_the_bits_of_the_kernels_that_unpack_in_registers(
    device: CudaDevice, upload: Upload, download: Download, name: str, shape: tuple[int, int]
) -> None:
    need_wgmma(device)
    matrix = load(device, name, shape, copied=True)
    check_same_bits(device, upload, download, matrix, multiply_sliced_copy, SLICED_SIZES)


@pytest.mark.gpu
@pytest.mark.parametrize("alpha", [1.0, 1.7])
@pytest.mark.parametrize("column", [8, 16])
@pytest.mark.parametrize("epilogue", Epilogue)
def test_every_epilogue_gives_the_same_bits_beside_what_else_is_there(
    device: CudaDevice, upload: Upload, download: Download, epilogue: Epilogue, column: int, alpha: float
) -> None:
    check_epilogue(
        device, upload, download, epilogue, column, alpha, copies_first(multiply_sliced_copy), lambda _: SLICED_SIZES
    )


@pytest.mark.parametrize("size", SLICED_SIZES)
def test_a_block_fits_the_shared_memory_of_a_gpu_that_has_its_instructions(size: int) -> None:
    assert shared_bytes(size) <= H100.shared_bytes


def test_no_sm_has_two_tiles() -> None:
    matrix = copied_matrix_of("Q4_K", 896, 4864)
    assert is_suitable(H100, product_of(matrix, 256)) and is_suitable(H100, product_of(matrix, 576))
    assert not is_suitable(H100, product_of(matrix, 640)), "140 tiles"
    assert not is_suitable(H100, product_of(matrix_of("Q4_K", 896, 4864), 256)), "it has no copy"
    assert sliced_shape(H100, matrix, 256).size == 32
    assert sliced_shape(H100, matrix, 512).size == 64


def test_the_shape_is_the_same_between_the_numbers_of_tokens_that_memory_is_planned_at() -> None:
    matrix = copied_matrix_of("Q4_K", 896, 4864)
    check_shapes(partial(sliced_shape, H100, matrix), range(65, 577))
