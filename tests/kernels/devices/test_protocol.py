"""kernels.devices.protocol: the devices and the weight stores have what it names."""

from __future__ import annotations

import inspect

import pytest

from kernels.devices.cpu_weight_store import CpuWeightStore
from kernels.devices.dry_run import DryRunDevice
from kernels.devices.open import open_device
from kernels.devices.protocol import Device, WeightStore, is_gpu
from kernels.weights.weight_store import PackedWeightStore


def members(protocol: type) -> set[str]:
    return {name for name in vars(protocol) if not name.startswith("_")}


@pytest.mark.parametrize("device", [open_device("cpu"), DryRunDevice("cuda:0")], ids=lambda device: device.name)
def test_a_device_has_all_that_a_model_needs(device: Device) -> None:
    assert [name for name in members(Device) if not hasattr(device, name)] == []


@pytest.mark.parametrize("store", [CpuWeightStore, PackedWeightStore])
@pytest.mark.parametrize("name", sorted(members(WeightStore)))
def test_both_weight_stores_are_called_in_one_way(store: type, name: str) -> None:
    expected, found = (inspect.signature(getattr(each, name)).parameters for each in (WeightStore, store))
    assert list(found) == list(expected)


def test_all_but_the_cpu_count_as_a_gpu() -> None:
    assert is_gpu(DryRunDevice("cuda:7"))
    assert not is_gpu(open_device("cpu"))
