"""Descriptors with which Hopper's copy engine finds its way in an array."""

from __future__ import annotations

from functools import lru_cache
from typing import Annotated

import numpy as np

from kernels.runtime import driver
from kernels.runtime.cuda_struct import FieldType
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.driver import MAP_ALIGNMENT, MAP_BYTES

TensorMap = Annotated[bytes, FieldType(f"{MAP_BYTES}s", MAP_BYTES, MAP_ALIGNMENT, "")]
"""The field of a struct that is a CUtensorMap."""

_encode = lru_cache(4096)(driver.encode_tensor_map)


def tensor_map(array: DeviceArray, box: tuple[int, int]) -> bytes:
    """A CUtensorMap of ``array`` [rows, columns] float16, whose ``box`` (rows, columns) is copied at a time.

    Rows of a box have 128 bytes, whose 16-byte vectors are swizzled by the row; what lies outside of the array is
    copied as zeros. Raises `CudaFailure`. Of an array of a dry run the map is empty.
    """
    assert array.dtype == np.float16 and len(array.shape) == 2 and box[1] * 2 == 128
    return _encode(array.pointer, array.shape, box) if array.pointer else bytes(MAP_BYTES)
