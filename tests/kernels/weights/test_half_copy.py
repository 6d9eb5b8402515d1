"""Float16 copies of matrices: what is in them, and how large they are."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.runtime.gpu_spec import A100, H100
from kernels.weights.dequant import dequantise
from kernels.weights.formats import CHUNK
from kernels.weights.half_copy import PADDED_ROWS, UNPACKED_FORMATS, HalfCopies, can_unpack, half_bytes, half_shape
from kernels.weights.weight_store import PackedWeightStore
from tests.kernels.conftest import Download
from tests.kernels.ops.product_case import matrix_of, need_wgmma
from tests.kernels.ops.random_weights import random_weight


@pytest.mark.gpu
@pytest.mark.sanitize("*")
@pytest.mark.parametrize("name", UNPACKED_FORMATS)
def test_a_copy_is_made_at_load_and_holds_the_numbers_of_the_file_as_float16(
    device: CudaDevice, download: Download, name: str
) -> None:
    need_wgmma(device)
    num_rows, width = 200, 512
    weight = random_weight(name, (num_rows, width), np.random.default_rng(1))
    copies = HalfCopies(device.weights, lambda number, _matrix: number == 1)
    store = PackedWeightStore(device.context, device.weights, copies=copies)
    table = store.table(weight)
    (first,), (second,) = (store.projection([weight]).matrices for _ in range(2))
    assert store.load(lambda _done, _total: None) == []
    assert table.half_copy is None and first.half_copy is None and second.half_copy is not None
    assert second.half_copy.shape == half_shape(second)
    values = np.empty((num_rows, width), np.float32)
    dequantise(weight.format, np.ascontiguousarray(weight.data), out=values)

    vectors = download(second.half_copy).reshape(-1, second.half_copy.shape[1], 8, 8)
    row = np.arange(num_rows)[:, None]
    rows = vectors[:, row, np.arange(8) ^ row % 8]  # [chunks, rows, vectors, 8]
    copied = rows.transpose(1, 0, 2, 3).reshape(num_rows, -1)[:, :width]
    np.testing.assert_allclose(copied, values, rtol=2e-3, atol=2e-3 * np.abs(values).max())


def test_a_copy_has_whole_units_and_padded_rows() -> None:
    assert half_shape(matrix_of("Q5_0", 1000, 896)) == (14, 1024, CHUNK)
    assert half_shape(matrix_of("Q4_K", 896, 4864)) == (76, 896, CHUNK)
    assert half_shape(matrix_of("Q4_K", 896, 4800))[0] == 76, "a unit is 256 columns"
    assert half_bytes(matrix_of("Q5_0", 1000, 896)) == 14 * 1024 * CHUNK * 2
    assert PADDED_ROWS % 128 == 0


def test_only_hopper_multiplies_by_copies_and_only_of_some_formats() -> None:
    assert can_unpack(H100, matrix_of("Q4_K", 1000, 256))
    assert not can_unpack(A100, matrix_of("Q4_K", 1000, 256))
    assert not can_unpack(H100, matrix_of("MXFP4", 1000, 256))
