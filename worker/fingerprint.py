"""What an answer depends on besides its request: two engines of one fingerprint draw the same ids."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from kernels.devices.protocol import Device, is_gpu
from orcd.errors import ModelLoadFailed
from worker.model.gguf import GGUFFile

NUMERICS_VERSION = 6
"""Raised with every change after which equal inputs may give other logits, or other draws from them."""


_PIECE_BYTES = 64


def fingerprint(gguf: GGUFFile, device: Device, files: Sequence[str] = ()) -> str:
    """``<file>-<type of the KV cache>-<kind of device>-<version of the numerics>``, without spaces.

    The file's part is 16 hexadecimal digits of SHA-256, over its metadata, its table of tensors, two pieces of each
    tensor, since reading all would take as long as loading it, and ``files``, which a worker has been given in place
    of what is in it (its tokenizer, its chat template; "": none). Raises `ModelLoadFailed` where one cannot be read.
    """
    table = [(tensor.name, tensor.format.name, tensor.shape, tensor.offset) for tensor in gguf.tensors.values()]
    described = hashlib.sha256(msgspec.json.encode((gguf.metadata, table), order="sorted"))
    for tensor in gguf.tensors.values():
        middle = len(tensor.content) // 2
        described.update(tensor.content[:_PIECE_BYTES])
        described.update(tensor.content[middle : middle + _PIECE_BYTES])
    for file in files:
        try:
            described.update(hashlib.sha256(Path(file).read_bytes()).digest() if file else bytes(1))
        except OSError as error:
            raise ModelLoadFailed(f"{file}: {error.strerror}; it was there when the worker was started") from None
    digest = described.hexdigest()[:16]
    kind = device.gpu.arch if is_gpu(device) else device.name
    return f"{digest}-{device.cache_format.name}-{kind}-{NUMERICS_VERSION}"
