"""kernels.devices.open."""

from __future__ import annotations

import pytest

from kernels.cache_format import FLOAT16, Q8
from kernels.devices.open import open_device
from kernels.errors import DeviceUnavailable


@pytest.mark.parametrize("name", ["cuda:0", "cuda:7"])
def test_a_gpu_that_is_not_there_is_an_error_that_names_the_cpu(name: str) -> None:
    with pytest.raises(DeviceUnavailable, match=f"{name}: .*--device cpu"):
        open_device(name)


@pytest.mark.gpu
def test_a_gpu_keeps_keys_and_values_in_8_bits_when_asked() -> None:
    assert [open_device("cuda:0", cache_type=kind).cache_format for kind in ("f16", "q8")] == [FLOAT16, Q8]


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match="choose cpu or cuda:N"):
        open_device("tpu")
