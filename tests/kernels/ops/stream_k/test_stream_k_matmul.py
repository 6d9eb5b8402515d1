"""Products whose partitions are shared out evenly among blocks: the same bits as in whole tiles, and when chosen."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.ops.matmul import multiply_tiled
from kernels.ops.matmul_params import Epilogue, Product
from kernels.ops.matmul_tuning import shaped_as
from kernels.ops.stream_k.stream_k_matmul import (
    CHAIN_PARTS,
    CUT_SIZE,
    FORMATS,
    MAX_TOKENS,
    StreamKShape,
    is_suitable,
    multiply_stream_k,
    shapes_of,
    stream_k_shape,
)
from kernels.runtime.gpu_spec import A100, H100
from kernels.weights.packed import PackedMatrix
from tests.kernels.conftest import Download, Upload
from tests.kernels.ops.product_case import (
    NUM_TOKENS,
    check_epilogue,
    check_shapes,
    load,
    matrix_of,
    need_wgmma,
    product_of,
)


def cuts_of(matrix: PackedMatrix, num_tokens: int) -> list[StreamKShape]:
    """All that there are for it."""
    tokens = shaped_as(num_tokens)
    return list(shapes_of(H100, matrix.num_rows, matrix.num_chunks, matrix.num_partitions, tokens))


@pytest.mark.gpu
@pytest.mark.sanitize("(896, 1280)-Q4_K-*")
@pytest.mark.parametrize("epilogue", [Epilogue.STORE_FLOAT, Epilogue.STORE_HALF], ids=["floats", "halves"])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(896, 1280), (1000, 256), (9736, 896), (3072, 4096), (36000, 1024)], ids=str)
def test_outputs_have_the_bits_of_whole_tiles_for_any_number_of_tokens(
    device: CudaDevice, upload: Upload, download: Download, name: str, shape: tuple[int, int], epilogue: Epilogue
) -> None:
    need_wgmma(device)
    if shape[1] % 256 and name in ("Q4_K", "Q5_K", "Q6_K"):
        pytest.skip("its rows are no whole blocks")
    matrix = load(device, name, shape)
    x = np.random.default_rng(2).normal(size=(520, shape[1])).astype(np.float16)
    dtype = np.float32 if epilogue is Epilogue.STORE_FLOAT else np.float16
    expected = upload(np.full((520, shape[0]), np.nan, dtype))
    multiply_tiled(device.context, Product(upload(x), matrix, expected, epilogue))
    for num_tokens in (1, 64, 130, 256, 300, 512, 520):
        rows = upload(x[:num_tokens])
        for cut in cuts_of(matrix, num_tokens):
            for _ in range(2):  # the second time counts of arrivals are what the first one left
                out = upload(np.full((num_tokens, shape[0]), np.nan, dtype))
                device.context.begin_step()
                multiply_stream_k(device.context, Product(rows, matrix, out, epilogue), cut)
                np.testing.assert_array_equal(
                    download(out), download(expected)[:num_tokens], err_msg=f"{num_tokens}: {cut}"
                )


@pytest.mark.gpu
@pytest.mark.sanitize("*-16-1.0")
@pytest.mark.parametrize("alpha", [1.0, 1.7])
@pytest.mark.parametrize("column", [3, 16])
@pytest.mark.parametrize("epilogue", Epilogue)
def test_every_epilogue_gives_the_same_bits_beside_what_else_is_there(
    device: CudaDevice, upload: Upload, download: Download, epilogue: Epilogue, column: int, alpha: float
) -> None:
    check_epilogue(
        device, upload, download, epilogue, column, alpha, multiply_stream_k, lambda matrix: cuts_of(matrix, NUM_TOKENS)
    )


def test_other_gpus_formats_and_outputs_have_other_kernels() -> None:
    matrix = matrix_of("Q4_K", 3072, 8192)
    assert is_suitable(H100, product_of(matrix, 256, dtype=np.float16))
    assert not is_suitable(A100, product_of(matrix, 256, dtype=np.float16))
    assert not is_suitable(H100, product_of(matrix, 256)), "float32 that is not added"
    assert not is_suitable(H100, product_of(matrix, MAX_TOKENS + 1, dtype=np.float16))
    assert not is_suitable(H100, product_of(matrix_of("MXFP4", 3072, 8192), 256, dtype=np.float16))


def test_all_blocks_run_at_once_and_have_all_parts_of_all_tiles() -> None:
    for num_rows, width in ((896, 4864), (9728, 896), (3072, 8192), (16384, 3072), (28672, 4096)):
        matrix = matrix_of("Q8_0", num_rows, width)
        for num_tokens in range(64, MAX_TOKENS + 1, 64):
            for shape in cuts_of(matrix, num_tokens):
                parts_of_tile = matrix.num_partitions if shape.size == CUT_SIZE else 1
                if matrix.num_partitions == 1:
                    parts_of_tile = CHAIN_PARTS
                parts = -(-num_rows // 128) * -(-num_tokens // shape.size) * parts_of_tile
                assert shape.num_blocks <= H100.num_sms
                assert (shape.num_blocks - 1) * shape.parts_of_block < parts <= shape.num_blocks * shape.parts_of_block


def test_the_shape_is_the_same_between_the_numbers_of_tokens_that_memory_is_planned_at() -> None:
    for num_rows, width in ((896, 4864), (9728, 896), (3072, 8192), (16384, 3072)):
        matrix = matrix_of("Q8_0", num_rows, width)
        check_shapes(partial(stream_k_shape, H100, matrix), range(64, 2049))
