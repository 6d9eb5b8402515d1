"""What an answer depends on besides its request: two engines of one fingerprint draw the same ids."""

from __future__ import annotations

import hashlib

import msgspec

from kernels.devices.protocol import Device, is_gpu
from worker.model.gguf import GGUFFile

NUMERICS_VERSION = 6
"""Raised with every change after which equal inputs may give other logits, or other draws from them."""


def fingerprint(gguf: GGUFFile, device: Device) -> str:
    """``<file>-<type of the KV cache>-<kind of device>-<version of the numerics>``, without spaces.

    The file's part is over its metadata and its table of tensors, 16 hexadecimal digits of SHA-256: two files that
    differ in the values of their weights alone have the same.
    """
    table = [(tensor.name, tensor.format.name, tensor.shape, tensor.offset) for tensor in gguf.tensors.values()]
    digest = hashlib.sha256(msgspec.json.encode((gguf.metadata, table), order="sorted")).hexdigest()[:16]
    kind = device.gpu.arch if is_gpu(device) else device.name
    return f"{digest}-{device.cache_format.name}-{kind}-{NUMERICS_VERSION}"
