"""Which layers of a model a run must go through."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from dataclasses import fields, is_dataclass
from typing import Any

import msgspec

from kernels.devices.protocol import Device, is_gpu


def layers_to_run(layers: Iterable[object], device: Device) -> list[int]:
    """The numbers of the layers that a forward pass runs: of all.

    On a dry run only the first of each kind, and the last one, which most tokens do not go through to its end: others
    that differ in nothing but the values of their weights take the same memory and launch the same kernels, and there
    is no residual stream that they would add to.
    """
    kinds = list(layers)
    if not _is_dry_run(device):
        return list(range(len(kinds)))
    first: dict[Hashable, int] = {}
    for number, layer in enumerate(kinds):
        first.setdefault(_kind(layer), number)
    return sorted({*first.values(), len(kinds) - 1})


def _is_dry_run(device: Device) -> bool:
    if not is_gpu(device):
        return False
    from kernels.devices.dry_run import DryRunDevice  # not at the top: the CPU device needs nothing of CUDA's

    return isinstance(device, DryRunDevice)


def _kind(value: Any) -> Hashable:
    """Equal for layers, and what they are made of, of one kind; what is not known here is another kind each time."""
    if isinstance(value, msgspec.Struct):
        return type(value), *(_kind(getattr(value, name)) for name in value.__struct_fields__)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), *(_kind(getattr(value, each.name)) for each in fields(value))
    if isinstance(value, list | tuple):
        return type(value), *map(_kind, value)
    return value if isinstance(value, Hashable) else id(value)
