"""kernels.device."""

from __future__ import annotations

import numpy as np
import pytest

import kernels.reference
from kernels.device import DeviceUnavailable, open_device
from kernels.formats import FORMATS
from kernels.layers import Weight


def test_the_cpu_device_runs_the_reference_ops_on_blocks_as_they_are() -> None:
    device = open_device("cpu")
    assert (device.name, device.ops) == ("cpu", kernels.reference)
    blocks = np.zeros((5, 68), np.uint8)
    [layer] = device.store.projection([Weight("output.weight", FORMATS["Q8_0"], blocks)])
    assert layer.matrix.shape == (5, 64) and layer.matrix.data is blocks
    assert device.memory_bytes() > 1_000_000


@pytest.mark.parametrize("name", ["cuda:0", "cuda:7"])
def test_a_gpu_that_is_not_there_is_an_error_that_names_the_cpu(name: str) -> None:
    with pytest.raises(DeviceUnavailable, match=f"{name}: .*--device cpu"):
        open_device(name)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(DeviceUnavailable, match="choose cpu or cuda:N"):
        open_device("tpu")
