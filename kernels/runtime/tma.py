"""Descriptors with which Hopper's copy engine finds its way in an array."""

from __future__ import annotations

import ctypes
from functools import cache, lru_cache
from typing import Any

import numpy as np

from kernels.errors import CudaFailure
from kernels.runtime.device_array import DeviceArray

MAP_BYTES = 128
MAP_ALIGNMENT = 64

# Of the driver's enums.
_FLOAT16 = 6
_SWIZZLE_128_BYTES = 3
_PROMOTE_TO_256_BYTES = 3


def tensor_map(array: DeviceArray, box: tuple[int, int]) -> bytes:
    """A CUtensorMap of ``array`` [rows, columns] float16, whose ``box`` (rows, columns) is copied at a time.

    Rows of a box have 128 bytes, whose 16-byte pieces are swizzled by the row; what lies outside of the array is copied
    as zeros. Raises `CudaFailure`. Of an array of a dry run the map is empty.
    """
    assert array.dtype == np.float16 and len(array.shape) == 2 and box[1] * 2 == 128
    return _encode(array.pointer, array.shape, box) if array.pointer else bytes(MAP_BYTES)


@lru_cache(4096)
def _encode(pointer: int, shape: tuple[int, int], box: tuple[int, int]) -> bytes:
    # Not by cuda.bindings: its CUtensorMap object need not be aligned as the driver demands.
    buffer = ctypes.create_string_buffer(MAP_BYTES + MAP_ALIGNMENT)
    address = -(-ctypes.addressof(buffer) // MAP_ALIGNMENT) * MAP_ALIGNMENT
    (num_rows, num_columns), (box_rows, box_columns) = shape, box
    error = _driver().cuTensorMapEncodeTiled(
        ctypes.c_void_p(address),
        ctypes.c_int(_FLOAT16),
        ctypes.c_uint32(2),
        ctypes.c_void_p(pointer),
        (ctypes.c_uint64 * 2)(num_columns, num_rows),
        (ctypes.c_uint64 * 1)(num_columns * 2),
        (ctypes.c_uint32 * 2)(box_columns, box_rows),
        (ctypes.c_uint32 * 2)(1, 1),
        ctypes.c_int(0),  # not interleaved
        ctypes.c_int(_SWIZZLE_128_BYTES),
        ctypes.c_int(_PROMOTE_TO_256_BYTES),
        ctypes.c_int(0),  # zeros outside
    )
    if error:
        raise CudaFailure("cuTensorMapEncodeTiled", f"error {error} for {shape} at {pointer:#x}")
    return ctypes.string_at(address, MAP_BYTES)


@cache
def _driver() -> Any:
    return ctypes.CDLL("libcuda.so.1")
