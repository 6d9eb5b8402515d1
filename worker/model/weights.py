"""Typed access to a model's tensors: shapes and types are checked when they are asked for, values while loading."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from kernels.batch import AnyArray
from kernels.devices.protocol import AnyExperts, AnyMatrix, AnyProjection, AnyRouter, Device
from kernels.errors import UnsupportedWeight
from kernels.weights.dequant import dequantise
from kernels.weights.formats import FORMATS
from kernels.weights.parameters import LayerNorm, RmsNorm, Rope, SharedWeights, Weight
from orcd.errors import ModelLoadFailed
from worker.model.config import ModelConfig
from worker.model.gguf import GGUFFile, Tensor

NOT_FINITE = "holds NaN or infinity: the file is damaged or was badly converted"
LEAST_ROPE_FACTOR = 1e-6

Progress = Callable[[int, int], None]
"""Called with bytes of weights done and in all."""


class RowPart(msgspec.Struct, frozen=True):
    """Of every ``period`` rows of a tensor those from ``start`` to before ``stop``."""

    start: int
    stop: int
    period: int

    def num_rows(self, num_outputs: int) -> int:
        """How many rows a tensor has, of which ``num_outputs`` are in this part."""
        return num_outputs // (self.stop - self.start) * self.period

    def of(self, rows: NDArray[Any]) -> NDArray[Any]:
        """A copy of the part of ``rows`` [rows, ...]."""
        shape = rows.shape[1:]
        return rows.reshape(-1, self.period, *shape)[:, self.start : self.stop].reshape(-1, *shape)


class TensorSpec(msgspec.Struct, frozen=True):
    """A tensor ``name``.weight of ``num_outputs`` rows and, if it has one, its ``name``.bias.

    With a ``part`` these are some of the rows of a larger tensor.
    """

    name: str
    num_outputs: int
    bias: bool
    part: RowPart | None = None


class Weights:
    """A model's tensors by name. Every error is a `ModelLoadFailed` that names file and tensor."""

    def __init__(self, gguf: GGUFFile, device: Device) -> None:
        self._gguf = gguf
        self._device = device
        self._prefix = ""
        self._used: set[str] = set()
        self._ignored: set[str] = set()

    def layer(self, index: int) -> Weights:
        """Those of one layer, which have names without ``blk.N.`` there."""
        layer = copy(self)
        layer._prefix = f"blk.{index}."
        return layer

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._gguf.tensors

    def table(self, name: str, num_rows: int, width: int) -> AnyMatrix:
        """An embedding table, for the device's ops."""
        with self._named():
            return self._device.store.table(self._weight(name, num_rows, width))

    def projection(self, *specs: TensorSpec, num_inputs: int) -> AnyProjection:
        """Matrices on one input, their outputs side by side."""
        with self._named():
            return self._device.store.projection([self._of(spec, num_inputs) for spec in specs])

    def gate_up(self, *specs: TensorSpec, num_inputs: int) -> AnyProjection:
        """Gate and up projection, two tensors or a fused one."""
        with self._named():
            return self._device.store.gate_up([self._of(spec, num_inputs) for spec in specs])

    def experts(
        self,
        gate: TensorSpec,
        up: TensorSpec | None,
        down: TensorSpec,
        *,
        num_experts: int,
        num_inputs: int,
        shared: SharedWeights | None = None,
    ) -> AnyExperts:
        """The experts' weights in stacked tensors, ``num_outputs`` of a spec being an expert's.

        Without ``up``, ``gate`` is a fused tensor: gate, then up projection. ``shared`` is the expert beside them.
        """
        if f"{gate.name.removesuffix('_exps')}.0.weight" in self:
            problem = "is missing: each expert has tensors of its own, as before April 2024; take a newer file"
            raise self._error(f"{self._prefix}{gate.name}.weight", problem)
        inner = gate.num_outputs if up else gate.num_outputs // 2
        with self._named():
            return self._device.store.experts(
                self._of(gate, num_inputs, num_experts),
                self._of(up, num_inputs, num_experts) if up else None,
                self._of(down, inner, num_experts),
                shared,
            )

    def shared_expert(
        self, gate: TensorSpec, up: TensorSpec, down: TensorSpec, output_gate: str, *, num_inputs: int
    ) -> SharedWeights:
        """The expert that every token goes through; ``output_gate`` is the vector that its output is gated by."""
        return SharedWeights(
            self._of(gate, num_inputs),
            self._of(up, num_inputs),
            self._of(down, gate.num_outputs),
            self.host_vector(output_gate, num_inputs),
        )

    def router(
        self,
        spec: TensorSpec,
        *,
        num_inputs: int,
        num_used: int,
        column_scales: NDArray[np.float32] | None = None,
        input_weight: AnyArray | None = None,
        output_scales: AnyArray | None = None,
        renormalises: bool = True,
    ) -> AnyRouter:
        """The matrix that chooses experts, its columns times ``column_scales``; the last three are a `Router`'s."""
        weight = self._of(spec, num_inputs)
        if column_scales is not None:
            values = np.empty((spec.num_outputs, num_inputs), np.float32)
            dequantise(weight.format, np.ascontiguousarray(weight.data), out=values)
            with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused when it is loaded
                values *= column_scales
            weight = replace(weight, format=FORMATS["F32"], data=values.view(np.uint8))
        with self._named():
            return self._device.store.router(weight, num_used, input_weight, output_scales, renormalises=renormalises)

    def head(self, embedding: str, num_outputs: int, num_inputs: int) -> tuple[AnyMatrix, AnyProjection]:
        """The embedding table and the output head, which are one matrix where the file has no ``output.weight``."""
        if "output.weight" in self:
            head = self.projection(TensorSpec("output", num_outputs, bias=False), num_inputs=num_inputs)
            return self.table(embedding, num_outputs, num_inputs), head
        with self._named():
            return self._device.store.tied_head(self._weight(embedding, num_outputs, num_inputs))

    def vector(self, name: str, *shape: int) -> AnyArray:
        """A small tensor (norm, sinks) as float32."""
        return self._device.store.vector(self.host_vector(name, *shape))

    def taps(self, name: str, num_channels: int, num_taps: int) -> AnyArray:
        """The weights of a convolution with taps of each channel, [num_taps, num_channels] float32."""
        return self._device.store.vector(np.ascontiguousarray(self.host_vector(name, num_channels, num_taps).T))

    def rms_norm(self, name: str, width: int, epsilon: float, *, divisor: float = 1.0) -> RmsNorm[AnyArray]:
        """The norm ``name``.weight, and what comes out of it divided by ``divisor``."""
        weight = self.host_vector(f"{name}.weight", width) / np.float32(divisor)
        return RmsNorm(self._device.store.vector(weight), epsilon)

    def layer_norm(self, name: str, width: int, epsilon: float) -> LayerNorm[AnyArray]:
        """The norm ``name``.weight, with ``name``.bias."""
        return LayerNorm(self.vector(f"{name}.weight", width), self.vector(f"{name}.bias", width), epsilon)

    def rope(self, rope: Rope[NDArray[np.float32]]) -> Rope[AnyArray]:
        """``rope`` with its frequencies on the device."""
        frequencies = self._device.store.vector(rope.inverse_frequencies)
        return Rope(frequencies, rope.pairing, rope.attention_factor, rope.long_after, rope.query_growth)

    def host_vector(self, name: str, *shape: int) -> NDArray[np.float32]:
        """The same in host memory; `ModelLoadFailed` if it is not finite."""
        tensor = self._tensor(name, shape, (1, *shape))  # some programs write a vector as a matrix of one row
        values = np.empty(shape, np.float32)
        dequantise(tensor.format, np.ascontiguousarray(tensor.data), out=values.reshape(tensor.shape))
        if not np.isfinite(values).all():
            raise self._error(tensor.name, NOT_FINITE)
        return values

    def rope_factors(self, name: str, num_pairs: int) -> NDArray[np.float32]:
        """What rotary frequencies are divided by, in host memory; `ModelLoadFailed` if it is not positive."""
        factors = self.host_vector(name, num_pairs)
        if factors.min() < LEAST_ROPE_FACTOR:
            raise self._error(self._prefix + name, f"holds a factor below {LEAST_ROPE_FACTOR:g}")
        return factors

    def check_limits(self, config: ModelConfig) -> None:
        """Whether the device's ops can do heads, states and a vocabulary of this size."""
        most = self._device.max_vocab
        if most is not None and config.vocab_size > most:
            raise ModelLoadFailed(
                f"{self._gguf.path}: the vocabulary has {config.vocab_size:,} tokens, and a GPU can draw from at most "
                f"{most:,}; run it with --device cpu"
            )
        known = self._device.head_dims
        unknown = {layer.head_dim for layer in config.layers} - {*known}
        if known and unknown:
            raise ModelLoadFailed(
                f"{self._gguf.path}: metadata key {config.architecture}.attention.key_length: heads of "
                f"{min(unknown)} elements, and a GPU can do {', '.join(map(str, known))}; run it with --device cpu"
            )

        kept, sizes = config.recurrence, self._device.state_dims
        if kept and kept.num_value_heads and sizes and not {kept.key_dim, kept.value_dim} <= {*sizes}:
            raise ModelLoadFailed(
                f"{self._gguf.path}: metadata key {config.architecture}.ssm.state_size: states of {kept.key_dim} by "
                f"{kept.value_dim}, and a GPU can do {', '.join(map(str, sizes))}; run it with --device cpu"
            )

    def ignore(self, *expressions: str) -> None:
        """Leave out the tensors that nobody asked for and whose names (of a layer, within it) match one whole."""
        pattern = re.compile(re.escape(self._prefix) + f"(?:{'|'.join(expressions)})")
        self._ignored |= {name for name in self._gguf.tensors.keys() - self._used if pattern.fullmatch(name)}

    def check_all_used(self) -> None:
        """A tensor that nobody asked for belongs to a variant of the model that we would compute wrongly."""
        if unused := self._gguf.tensors.keys() - self._used - self._ignored:
            raise ModelLoadFailed(
                f"{self._gguf.path}: tensor {min(unused)!r} is not known for this architecture "
                f"({len(unused)} such tensors): the file holds a variant that is not supported"
            )

    def load(self, progress: Progress) -> None:
        """Bring all weights to the device; raises `ModelLoadFailed` if one holds NaN or infinity.

        ``progress`` is first called with 0 bytes done, when all that comes before is: then it can tell how long the
        rest takes.
        """
        progress(0, sum(tensor.num_bytes for tensor in self._gguf.tensors.values() if tensor.name not in self._ignored))
        for name in self._device.store.load(progress):
            raise self._error(name, NOT_FINITE)

    def _of(self, spec: TensorSpec, num_inputs: int, num_experts: int | None = None) -> Weight:
        stack = () if num_experts is None else (num_experts,)
        if spec.part is not None:
            weight = self._weight(f"{spec.name}.weight", spec.part.num_rows(spec.num_outputs), num_inputs)
            return replace(weight, data=spec.part.of(weight.data))
        weight = self._weight(f"{spec.name}.weight", *stack, spec.num_outputs, num_inputs)
        if not spec.bias:
            return weight
        return replace(weight, bias=self.host_vector(f"{spec.name}.bias", *stack, spec.num_outputs))

    def _weight(self, name: str, *shape: int) -> Weight:
        tensor = self._tensor(name, shape)
        return Weight(tensor.name, tensor.format, tensor.data)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """The device's refusal of a tensor as an error that names the file too."""
        try:
            yield
        except UnsupportedWeight as error:
            raise self._error(error.name, error.problem) from None

    def _tensor(self, name: str, *shapes: tuple[int, ...]) -> Tensor:
        """The tensor ``name``, which must have one of ``shapes``."""
        name = self._prefix + name
        tensor = self._gguf.tensors.get(name)
        if tensor is None:
            raise self._error(name, "is missing")
        if tensor.format.name not in FORMATS:
            raise self._error(name, f"has type {tensor.format.name}; supported are {', '.join(FORMATS)}")
        if tensor.shape not in shapes:
            raise self._error(name, f"has shape {list(tensor.shape)}, but the metadata asks for {list(shapes[0])}")
        self._used.add(name)
        return tensor

    def _error(self, name: str, problem: str) -> ModelLoadFailed:
        return ModelLoadFailed(f"{self._gguf.path}: tensor {name!r} {problem}")
