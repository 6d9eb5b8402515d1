"""kernels.devices.device_name."""

from __future__ import annotations

import pytest

from kernels.devices.device_name import gpu_index


@pytest.mark.parametrize(("name", "index"), [("cuda:0", 0), ("cuda:17", 17)])
def test_a_gpu_is_called_by_its_number(name: str, index: int) -> None:
    assert gpu_index(name) == index


@pytest.mark.parametrize(
    "name", ["", "cpu", "cuda", "cuda:", "cuda:x", "cuda:-1", "cuda:0 ", "cuda:\u0663", "cuda:99999"]
)
def test_other_names_are_of_no_gpu(name: str) -> None:
    assert gpu_index(name) is None
