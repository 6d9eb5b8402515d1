"""kernels.runtime.device_array."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.runtime.device_array import DeviceArray


def test_arrays_are_seen_in_other_ways_but_stay_where_they_are() -> None:
    array = DeviceArray(1000, (6, 4), np.dtype(np.float16))
    assert (array.size, array.nbytes) == (24, 48)
    assert array.reshape(3, -1) == DeviceArray(1000, (3, 8), np.dtype(np.float16))
    assert array.first(2) == DeviceArray(1000, (2, 4), np.dtype(np.float16))
    assert array.rows(2, 6) == DeviceArray(1016, (4, 4), np.dtype(np.float16))
    assert array.rows(6, 6).size == 0
    with pytest.raises(AssertionError):
        array.reshape(5, 5)
    with pytest.raises(AssertionError):
        array.first(7)
