"""Arrays in device memory: an address, a shape and a type, nothing more."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np


class DeviceArray(msgspec.Struct, frozen=True):
    """A C-contiguous array at ``pointer`` in device memory; never owns it. Of a dry run the pointer is 0."""

    pointer: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def reshape(self, *shape: int) -> DeviceArray:
        """The same memory as another shape of the same size; one dimension may be -1."""
        if -1 in shape:
            known = -math.prod(shape)
            shape = tuple(self.size // known if length == -1 else length for length in shape)
        assert math.prod(shape) == self.size, f"{self.shape} cannot be seen as {shape}"
        return DeviceArray(self.pointer, shape, self.dtype)

    def rows(self, start: int, stop: int) -> DeviceArray:
        """``self[start:stop]`` of the first dimension."""
        assert 0 <= start <= stop <= self.shape[0], f"rows {start}:{stop} of {self.shape}"
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        return DeviceArray(self.pointer + start * row_bytes, (stop - start, *self.shape[1:]), self.dtype)

    def first(self, count: int) -> DeviceArray:
        """The first ``count`` rows."""
        return self.rows(0, count)


def pointer_of(array: DeviceArray | None) -> int:
    """The address that a kernel is given: of no array, the null pointer."""
    return 0 if array is None else array.pointer
