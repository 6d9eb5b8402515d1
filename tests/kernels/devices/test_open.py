"""kernels.devices.open."""

from __future__ import annotations

import pytest

from kernels.devices.open import open_device
from kernels.errors import DeviceUnavailable


@pytest.mark.parametrize("name", ["cuda:0", "cuda:7"])
def test_a_gpu_that_is_not_there_is_an_error_that_names_the_cpu(name: str) -> None:
    with pytest.raises(DeviceUnavailable, match=f"{name}: .*--device cpu"):
        open_device(name)


def test_8_bits_for_keys_and_values_are_refused_on_a_gpu_in_one_line() -> None:
    with pytest.raises(DeviceUnavailable, match=r"^cuda:0: no GPU has kernels .* type q8 yet; .*--device cpu.*$"):
        open_device("cuda:0", cache_type="q8")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match="choose cpu or cuda:N"):
        open_device("tpu")
