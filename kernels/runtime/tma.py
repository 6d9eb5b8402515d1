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


def tensor_map(array: DeviceArray, box: tuple[int, int], *, columns: range | None = None) -> bytes:
    """A CUtensorMap of ``array`` [rows, columns] float16 or float32, whose ``box`` (rows, columns) is copied at a time.

    With ``columns`` these are all that there are of it. Rows of a box have 128 bytes, or 64, and their 16-byte vectors
    are swizzled by the row; what lies outside of the array is copied as zeros, or not stored. Raises `CudaFailure`. Of
    an array of a dry run the map is empty.
    """
    element_bytes = array.dtype.itemsize
    assert array.dtype in (np.float16, np.float32) and len(array.shape) == 2 and box[1] * element_bytes in (64, 128)
    num_rows, width = array.shape
    columns = columns or range(width)
    start = array.pointer + columns.start * element_bytes
    assert not (start % 16 or width * element_bytes % 16), f"columns from {columns.start} on of {width} at {start:#x}"
    if not array.pointer:
        return bytes(MAP_BYTES)
    return _encode(start, element_bytes, (num_rows, len(columns)), width * element_bytes, box)
