"""Numerics: every op twice, as CUDA and as NumPy, and the devices they run on; knows no model and no queue."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kernels.batch import Step
    from kernels.devices.open import open_device
    from kernels.devices.protocol import Device
    from kernels.errors import DeviceUnavailable
    from kernels.weights.formats import FORMATS

__all__ = ["FORMATS", "Device", "DeviceUnavailable", "Step", "open_device"]

_MODULES = {
    "FORMATS": "kernels.weights.formats",
    "Device": "kernels.devices.protocol",
    "DeviceUnavailable": "kernels.errors",
    "Step": "kernels.batch",
    "open_device": "kernels.devices.open",
}


def __getattr__(name: str) -> Any:
    """A public name, whose module is imported when it is first asked for: a file's formats need no device."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
