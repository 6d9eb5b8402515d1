"""kernels.devices.dry_run: what is counted of a GPU that is not there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from kernels.devices.dry_run import DryRunDevice
from kernels.runtime.gpu_spec import H100
from kernels.weights.formats import FORMATS
from kernels.weights.parameters import Weight


def test_every_use_of_memory_is_counted_and_none_is_taken() -> None:
    device = DryRunDevice("cuda:3")
    counted = [device.memory_bytes()]
    arrays = [
        *device.layer_cache(1 << 20, 16, 8, 128).arrays(),  # 32 GiB each
        device.empty((1 << 30,), np.float32),
        device.begin_step()((1 << 30,), np.float32),
    ]
    for array in arrays:
        assert array.pointer == 0
        counted.append(counted[-1] + array.nbytes)
    assert device.memory_bytes() == counted[-1]
    blocks = np.zeros((5, FORMATS["Q8_0"].row_bytes(64)), np.uint8)
    device.store.projection([Weight("output.weight", FORMATS["Q8_0"], blocks)])
    assert device.memory_bytes() > counted[-1]


def test_scratch_memory_counts_as_much_as_the_largest_step_took() -> None:
    device = DryRunDevice("cuda:0")
    before = device.memory_bytes()
    for size in (1 << 20, 3 << 20, 2 << 20):
        device.begin_step()((size,), np.uint8)
    assert device.memory_bytes() - before == 3 << 20


def test_nothing_of_it_lies_in_the_wrong_memory() -> None:
    assert DryRunDevice("cuda:0").verify_residency() == []


def test_work_is_planned_for_the_gpu_that_it_stands_for() -> None:
    small = replace(H100, num_sms=8)
    device = DryRunDevice("cuda:1", small)
    assert (device.name, device.gpu, device.context.gpu) == ("cuda:1", small, small)
    assert DryRunDevice("cuda:1").gpu is H100
