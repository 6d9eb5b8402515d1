"""kernels.runtime.tma: what describes an array to Hopper's copy engine."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.runtime.cuda_struct import CudaStruct, Int32
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.driver import MAP_ALIGNMENT, MAP_BYTES
from kernels.runtime.tma import TensorMap, tensor_map
from tests.kernels.conftest import Upload

HALF = np.dtype(np.float16)


class Params(CudaStruct, source="nowhere"):
    """As a kernel is given a map."""

    size: Int32
    map: TensorMap
    last: Int32


def test_of_an_array_of_a_dry_run_the_map_is_empty_and_needs_no_driver() -> None:
    assert tensor_map(DeviceArray(0, (300, 128), HALF), (64, 64)) == bytes(MAP_BYTES)


@pytest.mark.parametrize(
    ("shape", "dtype", "box"),
    [((300, 128), np.float32, (64, 64)), ((300 * 128,), np.float16, (64, 64)), ((300, 128), np.float16, (64, 16))],
    ids=["rows of 256 bytes", "one dimension", "rows of 32 bytes"],
)
def test_what_the_swizzle_does_not_fit_is_refused(shape: tuple[int, ...], dtype: type, box: tuple[int, int]) -> None:
    with pytest.raises(AssertionError):
        tensor_map(DeviceArray(0, shape, np.dtype(dtype)), box)


def test_columns_that_do_not_begin_or_repeat_at_multiples_of_16_bytes_are_refused() -> None:
    for shape, columns in ((300, 128), range(4, 128)), ((300, 124), range(64)):
        with pytest.raises(AssertionError):
            tensor_map(DeviceArray(0, shape, HALF), (64, 64), columns=columns)
    assert tensor_map(DeviceArray(0, (300, 124), np.dtype(np.float32)), (64, 32), columns=range(4, 9))


def test_a_map_lies_in_the_parameters_of_a_kernel_where_the_engine_can_read_it() -> None:
    found = bytes(range(MAP_BYTES))
    params = Params(size=1, map=found, last=2)
    offset = next(field.offset for field in Params.layout.fields if field.name == "map")
    assert offset % MAP_ALIGNMENT == 0
    assert params[offset : offset + MAP_BYTES] == found
    assert len(params) % MAP_ALIGNMENT == 0


@pytest.mark.gpu
def test_maps_differ_by_the_address_the_shape_and_the_box(device: CudaDevice, upload: Upload) -> None:
    if not device.gpu.has_wgmma:
        pytest.skip("only Hopper's kernels take maps")
    first, second = (upload(np.zeros((300, 128), np.float16)) for _ in range(2))
    maps = [
        tensor_map(first, (64, 64)),
        tensor_map(second, (64, 64)),
        tensor_map(first.first(200), (64, 64)),
        tensor_map(first, (32, 64)),
        tensor_map(first, (64, 32)),
        tensor_map(first, (64, 64), columns=range(64)),
        tensor_map(first, (64, 64), columns=range(64, 128)),
    ]
    assert {len(each) for each in maps} == {MAP_BYTES}
    assert len(set(maps)) == len(maps)
    assert tensor_map(first, (64, 64)) == maps[0]
