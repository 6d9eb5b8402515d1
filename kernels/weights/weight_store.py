"""A model's weights on a CUDA device: where each tensor goes, and what brings it there.

Every method lays out memory and notes what to upload; `load` then does it all in the order of the calls. On a dry
device the same calls only find out how many bytes are needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from kernels.errors import UnsupportedWeight
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context
from kernels.runtime.memory import Arena
from kernels.weights.dequant import dequantise
from kernels.weights.formats import WIDEST
from kernels.weights.half_copy import HalfCopies, allocate_half, unpack
from kernels.weights.packed import (
    NUM_ARRIVALS,
    Experts,
    PackedMatrix,
    Projection,
    Router,
    SharedExpert,
    packed_bytes,
)
from kernels.weights.parameters import SharedWeights, Weight
from kernels.weights.repack import Placement, repack_rows, variant_for
from kernels.weights.upload import PinnedBuffers, Transfer, Upload

MAX_TENSORS = 1 << 16
MAX_EXPERTS_USED = 32  # by a token: a lane of a warp has each
COLUMN_GRANULE = 32  # columns of a matrix come in multiples of this: rows of activations are read 16 bytes at a time


class _Source(msgspec.Struct, frozen=True, eq=False):
    """A tensor to repack: its rows (bytes each), and what to do with some of them once they are in staging memory."""

    name: str
    data: NDArray[np.uint8]  # [rows, row_bytes]
    consume: Callable[..., None]  # (staging, first_row, num_rows, not_finite=)


class PackedWeightStore:
    """Lays weights out in ``arena`` and uploads them through ``context``."""

    def __init__(
        self,
        context: Context,
        arena: Arena,
        buffers: PinnedBuffers | None = None,
        copies: HalfCopies | None = None,
    ) -> None:
        """What is loaded goes through ``buffers``; without, some are made for it. ``copies`` are made of it then."""
        self._context = context
        self._arena = arena
        self._sources: list[_Source] = []
        self._vectors: list[tuple[DeviceArray, NDArray[Any]]] = []
        self._flags = arena.allocate((MAX_TENSORS,), np.int32)  # of each source: it holds NaN or infinity
        self._buffers = buffers
        self._copies = copies
        self.multiplied: list[PackedMatrix] = []  # all but embedding tables, in the order of the calls

    def table(self, weight: Weight) -> PackedMatrix:
        """An embedding table."""
        return self._stack([weight], is_multiplied=False)

    def tied_head(self, weight: Weight) -> tuple[PackedMatrix, Projection]:
        """One matrix as embedding table and as output head."""
        matrix = self._stack([weight])
        return matrix, Projection((matrix,))

    def projection(self, weights: Sequence[Weight]) -> Projection:
        """Matrices on one input; neighbours of one format become one matrix.

        So do all if they fit one without loss: what that adds is read sooner than a second kernel has started.
        """
        if all(weight.format.fits_widest for weight in weights):
            return Projection((self._stack(weights),))
        return self._neighbours(weights)

    def gate_up(self, weights: Sequence[Weight]) -> Projection:
        """Gate and up projection, two tensors or a fused one (gate first): one gated matrix if their format is one."""
        num_gated = sum(weight.num_outputs for weight in weights) // 2
        if len({weight.format.name for weight in weights}) > 1 or num_gated % 8:
            return self._neighbours(weights)
        return Projection((self._gated(weights, num_gated, num_experts=1),))

    def experts(self, gate: Weight, up: Weight | None, down: Weight, shared: SharedWeights | None = None) -> Experts:
        """The stacked experts of a layer; without ``up`` each expert's gate and up projection are one matrix.

        Raises `UnsupportedWeight` for such a matrix that cannot be cut in eights.
        """
        own_shared = self._shared(shared) if shared is not None else None
        num_experts, num_gated = gate.data.shape[:2]
        if up is None:
            if num_gated % 16:
                raise UnsupportedWeight(gate.name, f"has {num_gated} outputs; on a CUDA device they come in 16s")
            return Experts((self._gated([gate], num_gated // 2, num_experts),), self._expert_matrix(down), own_shared)
        if gate.format is up.format and num_gated % 8 == 0:
            gate_up: tuple[PackedMatrix, ...] = (self._gated([gate, up], num_gated, num_experts),)
        else:
            gate_up = self._expert_matrix(gate), self._expert_matrix(up)
        return Experts(gate_up, self._expert_matrix(down), own_shared)

    def router(
        self,
        weight: Weight,
        num_used: int,
        input_weight: DeviceArray | None = None,
        output_scales: DeviceArray | None = None,
        *,
        renormalises: bool = True,
    ) -> Router:
        """A router, small enough to be kept in float32 whatever its format is.

        Raises `UnsupportedWeight` if it chooses more than `MAX_EXPERTS_USED`, and if it does not renormalise.
        """
        if not renormalises:
            raise UnsupportedWeight(
                weight.name,
                "weighs the chosen experts by a softmax over all, which a GPU cannot; run it with --device cpu",
            )
        if num_used > MAX_EXPERTS_USED:
            raise UnsupportedWeight(
                weight.name, f"chooses {num_used} experts a token; on a CUDA device it can be {MAX_EXPERTS_USED}"
            )
        values = np.empty((weight.num_outputs, weight.num_inputs), np.float32)
        dequantise(weight.format, np.ascontiguousarray(weight.data), out=values)
        bias = np.zeros(weight.num_outputs, np.float32) if weight.bias is None else weight.bias
        arrivals = self._small(np.zeros(NUM_ARRIVALS, np.uint32))
        return Router(self.vector(values), self.vector(bias), arrivals, num_used, input_weight, output_scales)

    def vector(self, values: NDArray[np.float32]) -> DeviceArray:
        """A small float32 array."""
        return self._small(np.ascontiguousarray(values, np.float32))

    def _small(self, values: NDArray[Any]) -> DeviceArray:
        array = self._arena.allocate(values.shape, values.dtype)
        if values.size:
            self._vectors.append((array, values))
        return array

    def load(self, progress: Callable[[int, int], None]) -> list[str]:
        """Upload everything; the names of the tensors that hold NaN or infinity."""
        stream = self._context.stream
        transfers = [
            Transfer(
                source.data.reshape(-1),
                source.data.shape[1],
                partial(source.consume, not_finite=self._flags.rows(number, number + 1)),
            )
            for number, source in enumerate(self._sources)
        ]
        with Upload(self._context, self._buffers) as upload:
            start = self._flags.pointer  # what was in the arena before is not ours
            num_bytes = self._arena.pointer + self._arena.used_bytes - start
            stream.fill(start, 0, num_bytes)  # padding, flags
            for array, values in self._vectors:  # small and many: a copy costs a few microseconds, a buffer far more
                stream.copy_to_device(array.pointer, values.ctypes.data, values.nbytes)
            upload.run(transfers, progress)
        for matrix in self.multiplied:
            if matrix.half_copy is not None:
                unpack(self._context, matrix, matrix.half_copy)
        flags = np.empty(len(self._sources), np.int32)
        stream.copy_to_host(flags.ctypes.data, self._flags.pointer, flags.nbytes)
        stream.synchronise()
        bad = [source.name for source, flag in zip(self._sources, flags, strict=True) if flag]
        self._sources.clear()
        self._vectors.clear()
        self._buffers = None
        return bad

    def _neighbours(self, weights: Sequence[Weight]) -> Projection:
        runs: list[list[Weight]] = []
        for weight in weights:
            if runs and runs[-1][0].format is weight.format:
                runs[-1].append(weight)
            else:
                runs.append([weight])
        return Projection(tuple(map(self._stack, runs)))

    def _shared(self, shared: SharedWeights) -> SharedExpert:
        gate_up, down = self.gate_up([shared.gate, shared.up]), self.projection([shared.down])
        return SharedExpert(gate_up, down, self.vector(shared.output_gate))

    def _stack(self, weights: Sequence[Weight], *, is_multiplied: bool = True) -> PackedMatrix:
        num_rows = sum(weight.num_outputs for weight in weights)
        matrix = self._matrix(weights, num_rows, 1, gated=False, is_multiplied=is_multiplied)
        row = 0
        for weight in weights:
            self._place(weight, matrix, Placement(weight.num_outputs, row_offset=row))
            row += weight.num_outputs
        return matrix

    def _expert_matrix(self, weight: Weight) -> PackedMatrix:
        matrix = self._matrix([weight], weight.num_outputs, weight.data.shape[0], gated=False)
        self._place(weight, matrix, Placement(weight.num_outputs))
        return matrix

    def _gated(self, weights: Sequence[Weight], num_gated: int, num_experts: int) -> PackedMatrix:
        matrix = self._matrix(weights, 2 * num_gated, num_experts, gated=True)
        for weight in weights:
            placement = Placement(weight.num_outputs, gated_rows=num_gated, begins_with_up=weight is not weights[0])
            self._place(weight, matrix, placement)
        return matrix

    def _matrix(
        self, weights: Sequence[Weight], num_rows: int, num_experts: int, *, gated: bool, is_multiplied: bool = True
    ) -> PackedMatrix:
        formats, width = {weight.format.name for weight in weights}, weights[0].num_inputs
        format_ = weights[0].format if len(formats) == 1 else WIDEST
        if width % COLUMN_GRANULE:
            raise UnsupportedWeight(
                weights[0].name, f"has rows of {width}; on a CUDA device they must be a multiple of {COLUMN_GRANULE}"
            )
        for weight in weights:
            self._context.note_variant(*variant_for(weight.format, format_))
        packed = self._arena.allocate((num_experts, packed_bytes(format_, num_rows, width)), np.uint8)
        base = self._arena.allocate((num_experts, num_rows), np.int32) if format_.has_row_base else None
        matrix = PackedMatrix(format_, num_rows, width, num_experts, gated, packed, base, self._bias(weights, gated))
        if not is_multiplied:
            return matrix
        if self._copies is not None and self._copies.is_copied(len(self.multiplied), matrix):
            matrix = replace(matrix, half_copy=allocate_half(self._context, self._copies.arena, matrix))
        self.multiplied.append(matrix)
        return matrix

    def _bias(self, weights: Sequence[Weight], gated: bool) -> DeviceArray | None:
        """Biases in the order of the packed rows; zeros for a matrix without among others with."""
        if all(weight.bias is None for weight in weights):
            return None
        biases = [
            np.zeros(weight.data.shape[:-1], np.float32) if weight.bias is None else weight.bias for weight in weights
        ]
        values = np.concatenate(biases, axis=-1)
        if gated:  # gate, up -> alternating eights
            *stack, num_rows = values.shape
            values = values.reshape(*stack, 2, num_rows // 16, 8).swapaxes(-3, -2)
        return self.vector(values.reshape(-1))

    def _place(self, weight: Weight, matrix: PackedMatrix, placement: Placement) -> None:
        rows = weight.data.reshape(-1, weight.data.shape[-1])

        def consume(staging: DeviceArray, first_row: int, num_rows: int, *, not_finite: DeviceArray) -> None:
            repack_rows(
                self._context,
                staging,
                weight.format,
                matrix,
                placement,
                first_row=first_row,
                num_rows=num_rows,
                not_finite=not_finite,
            )

        self._sources.append(_Source(weight.name, rows, consume))
