"""Typed access to a model's tensors: shapes and types are checked when they are asked for, values once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.device import Device
from kernels.formats import FORMATS
from kernels.reference.dequant import dequantise, is_finite
from kernels.reference.matmul import Linear
from worker.errors import ModelLoadFailed
from worker.model.gguf import GGUFFile, Tensor

CHECKED_BYTES = 1 << 24  # of a tensor at a time

Progress = Callable[[int, int], None]
"""Called with bytes of weights done and in all."""


class Weights:
    """A model's tensors by name. Every error is a `ModelLoadFailed` that names file and tensor."""

    def __init__(self, gguf: GGUFFile, device: Device) -> None:
        self._gguf = gguf
        self._device = device
        self._used: set[str] = set()

    def __contains__(self, name: str) -> bool:
        return name in self._gguf.tensors

    def matrix(self, name: str, num_outputs: int, num_inputs: int) -> Any:
        """A weight in its blocks, for the device's ops."""
        tensor = self._tensor(name, (num_outputs, num_inputs))
        return self._device.matrix(tensor.format, tensor.data)

    def experts(self, name: str, num_experts: int, num_outputs: int, num_inputs: int) -> tuple[Any, ...]:
        """The experts' weights of one stacked tensor."""
        tensor = self._tensor(name, (num_experts, num_outputs, num_inputs))
        return tuple(self._device.matrix(tensor.format, data) for data in tensor.data)

    def vector(self, name: str, *shape: int) -> Any:
        """A small tensor (norm, bias, factors) as float32."""
        return self._device.vector(self.host_vector(name, *shape))

    def host_vector(self, name: str, *shape: int) -> NDArray[np.float32]:
        """The same in host memory, for what is computed from it at load."""
        tensor = self._tensor(name, shape)
        values = np.empty(shape, np.float32)
        dequantise(tensor.format, np.ascontiguousarray(tensor.data), out=values)
        return values

    def linear(self, name: str, num_outputs: int, num_inputs: int, *, bias: bool) -> Linear:
        """``name``.weight and, if ``bias``, ``name``.bias."""
        weight = self.matrix(f"{name}.weight", num_outputs, num_inputs)
        return Linear(weight, self.vector(f"{name}.bias", num_outputs) if bias else None)

    def check_all_used(self) -> None:
        """A tensor that nobody asked for belongs to a variant of the model that we would compute wrongly."""
        if unused := self._gguf.tensors.keys() - self._used:
            raise ModelLoadFailed(
                f"{self._gguf.path}: tensor {min(unused)!r} is not known for this architecture "
                f"({len(unused)} such tensors): the file holds a variant that is not supported"
            )

    def check_values(self, progress: Progress) -> None:
        """Read every tensor once: NaN and infinity are found now, and the first request finds the pages in memory."""
        total_bytes = sum(tensor.num_bytes for tensor in self._gguf.tensors.values())
        done_bytes = 0
        for tensor in self._gguf.tensors.values():
            rows = tensor.data.reshape(-1, tensor.data.shape[-1])
            step = max(1, CHECKED_BYTES // rows.shape[1])
            for start in range(0, rows.shape[0], step):
                part = rows[start : start + step]
                if not is_finite(tensor.format, part):
                    raise self._error(tensor.name, "holds NaN or infinity: the file is damaged or was badly converted")
                done_bytes += part.nbytes
                progress(done_bytes, total_bytes)

    def _tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        tensor = self._gguf.tensors.get(name)
        if tensor is None:
            raise self._error(name, "is missing")
        if tensor.format.name not in FORMATS:
            raise self._error(name, f"has type {tensor.format.name}; supported are {', '.join(FORMATS)}")
        if tensor.shape != shape:
            raise self._error(name, f"has shape {list(tensor.shape)}, but the metadata asks for {list(shape)}")
        self._used.add(name)
        return tensor

    def _error(self, name: str, problem: str) -> ModelLoadFailed:
        return ModelLoadFailed(f"{self._gguf.path}: tensor {name!r} {problem}")
