from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.devices.cpu import CpuDevice
from kernels.devices.dry_run import DryRunDevice
from kernels.runtime.device_array import DeviceArray
from worker.model.forward.layer_kinds import layers_to_run

DRY = DryRunDevice("cuda:0")


@dataclass(frozen=True, eq=False)
class Layer:
    weights: DeviceArray
    window: int = 0
    biases: tuple[DeviceArray, ...] = ()


def array(*shape: int) -> DeviceArray:
    return DeviceArray(0, shape, np.dtype(np.float32))


def test_a_dry_run_goes_through_the_first_layer_of_each_kind_and_the_last_one() -> None:
    layers = [
        Layer(array(2, 3)),
        Layer(array(3, 2)),
        Layer(array(2, 3)),
        Layer(array(2, 3), window=5),
        Layer(array(2, 3), biases=(array(2),)),
        Layer(array(2, 3), biases=(array(3),)),
        Layer(array(2, 3)),
        Layer(array(2, 3), biases=(array(2),)),
    ]
    assert layers_to_run(layers, DRY) == [0, 1, 3, 4, 5, 7]


def test_layers_of_what_is_not_known_are_kinds_of_their_own() -> None:
    layers = [np.zeros(1), np.zeros(1), np.zeros(1)]
    assert layers_to_run(layers, DRY) == [0, 1, 2]


def test_a_device_with_memory_runs_all_layers() -> None:
    assert layers_to_run([Layer(array(2)), Layer(array(2))], CpuDevice(0)) == [0, 1]
