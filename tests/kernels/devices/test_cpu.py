"""kernels.devices.cpu."""

from __future__ import annotations

import numpy as np

from kernels.devices.open import open_device
from kernels.registry import ReferenceOps
from kernels.weights.formats import FORMATS
from kernels.weights.parameters import Weight


def test_the_cpu_device_runs_the_reference_ops_on_blocks_as_they_are() -> None:
    device = open_device("cpu")
    assert device.name == "cpu" and isinstance(device.ops, ReferenceOps)
    blocks = np.zeros((5, 68), np.uint8)
    [layer] = device.store.projection([Weight("output.weight", FORMATS["Q8_0"], blocks)])
    assert layer.matrix.shape == (5, 64) and layer.matrix.data is blocks
    assert device.memory_bytes() > 1_000_000


def test_states_are_float32() -> None:
    states = open_device("cpu").state_array(3, 2, 5)
    assert (states.shape, states.dtype) == ((3, 2, 5), np.dtype(np.float32))
