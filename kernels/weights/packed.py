"""Matrices in device memory, in the layout that the kernels read (`kernels/cuda/common/layout.cuh` describes it).

Still quantised, and lossless: the same numbers as in the file in another order. Codes take what they take in the file;
scales of 4 or 6 bits may take up to 8, 7 stored signs take 8 bits, rows are padded to multiples of 64 and columns to
whole units.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import msgspec

from kernels.runtime.cuda_constants import declare_constants
from kernels.runtime.cuda_struct import CudaStruct, Int32, Int64, Pointer, UInt32
from kernels.runtime.device_array import DeviceArray, pointer_of
from kernels.weights.formats import CHUNK, UNIT_ROWS, Format

BLOCK_ROWS = 64
RECIPROCAL_BITS = 20

MAX_PARTITIONS = 20
WARPS_WANTED = 2048  # so many have a partition of a tile each when a GPU has one token: what it can keep busy
MORE_WARPS_WANTED = 2640  # of a format whose numbers take many instructions: what it has room for
READY_CHUNKS = 2  # that a warp unpacks while it waits for x
EXPERTS_AT_ONCE = 4  # as many share those

declare_constants("matmul/matmul.cuh", RECIPROCAL_BITS=RECIPROCAL_BITS, MAX_PARTITIONS=MAX_PARTITIONS)
declare_constants("matmul/matmul_weights.cuh", READY_CHUNKS=READY_CHUNKS)


class MatrixParams(CudaStruct, source="repack/repack"):
    """A packed matrix, as every kernel that has one is given it."""

    packed: Pointer  # [num_experts, expert_bytes] uint8
    num_partitions: Int32
    partition_reciprocal: UInt32
    num_rows: Int32
    width: Int32
    num_chunks: Int32
    num_units: Int32
    expert_bytes: Int64
    base: Pointer  # [num_experts, num_rows] int32: largest exponent of each row, of a format with `has_row_base`
    bias: Pointer  # [num_experts, num_rows] float32; may be null


@dataclass(frozen=True, eq=False)
class PackedMatrix:
    """One matrix of ``num_rows`` outputs and ``width`` inputs, or as many as there are experts.

    ``gated``: rows of a gate and of its up projection alternate in eights, and so do those of ``bias``. Its properties
    are kept, as every launch asks for them.
    """

    format: Format
    num_rows: int
    width: int
    num_experts: int
    gated: bool
    packed: DeviceArray  # uint8 [num_experts, bytes]
    base: (
        DeviceArray | None
    )  # int32 [num_experts, num_rows] of a format with `has_row_base`: largest exponent of each row
    bias: DeviceArray | None  # float32 [num_experts, num_rows]
    half_copy: DeviceArray | None = None  # float16 as `kernels.weights.half_copy` has it

    @cached_property
    def params(self) -> MatrixParams:
        """The matrix for the struct of a kernel."""
        return MatrixParams(
            packed=self.packed.pointer,
            base=pointer_of(self.base),
            bias=pointer_of(self.bias),
            expert_bytes=self.expert_bytes,
            num_rows=self.num_rows,
            width=self.width,
            num_chunks=self.num_chunks,
            num_units=self.num_units,
            num_partitions=self.num_partitions,
            partition_reciprocal=-(-(1 << RECIPROCAL_BITS) // self.num_partitions),
        )

    @cached_property
    def num_chunks(self) -> int:
        """Chunks of 64 columns, the last one padded."""
        return -(-self.width // CHUNK)

    @cached_property
    def num_units(self) -> int:
        """Units of columns, the last one padded."""
        return -(-self.num_chunks // self.format.unit_chunks)

    @cached_property
    def num_tiles(self) -> int:
        """Tiles of 16 rows, the last one padded."""
        return -(-self.num_rows // UNIT_ROWS)

    @cached_property
    def num_partitions(self) -> int:
        """Ranges of k that are summed on their own, then in order (split-K).

        Depends on the matrix and on nothing else, so that a row's result is the same bits in every batch and on every
        GPU.
        """
        tiles = self.num_tiles * (1 if self.num_experts == 1 else EXPERTS_AT_ONCE)
        warps_wanted = MORE_WARPS_WANTED if self.format.takes_many_instructions else WARPS_WANTED
        most = max(1, min(MAX_PARTITIONS, warps_wanted // tiles, self.num_units, self.num_chunks // READY_CHUNKS))
        return -(-self.num_units // -(-self.num_units // most))  # no more than the longest of them asks for

    @cached_property
    def expert_bytes(self) -> int:
        """Bytes of one expert's matrix."""
        return packed_bytes(self.format, self.num_rows, self.width)


def packed_bytes(format_: Format, num_rows: int, width: int) -> int:
    """Bytes of one packed matrix."""
    num_units = -(-width // (CHUNK * format_.unit_chunks))
    return -(-num_rows // BLOCK_ROWS) * (BLOCK_ROWS // UNIT_ROWS) * num_units * format_.unit_bytes


class Projection(msgspec.Struct, frozen=True, eq=False):
    """Matrices on the same input, their outputs side by side."""

    matrices: tuple[PackedMatrix, ...]

    @property
    def num_outputs(self) -> int:
        """Rows of all matrices together."""
        return sum(matrix.num_rows for matrix in self.matrices)


class SharedExpert(msgspec.Struct, frozen=True, eq=False):
    """The feed-forward network that every token goes through, times sigmoid(``output_gate`` x)."""

    gate_up: Projection
    down: Projection
    output_gate: DeviceArray  # [H] float32


class Experts(msgspec.Struct, frozen=True, eq=False):
    """The feed-forward networks of a mixture, stacked, and the one beside them.

    ``gate_up`` is one gated matrix or, where gates and up projections have two formats, one of each.
    """

    gate_up: tuple[PackedMatrix, ...]
    down: PackedMatrix
    shared: SharedExpert | None = None


NUM_ARRIVALS = 256
"""Of a router: of dozens of tokens, up to half as many blocks as there are SMs have other tokens than the rest."""


class Router(msgspec.Struct, frozen=True, eq=False):
    """Chooses experts: the ``num_used`` largest of weight x + bias.

    Experts are given x times ``input_weight``, and what they make is multiplied by their ``output_scales``.
    """

    weight: DeviceArray  # [experts, H] float32
    bias: DeviceArray  # [experts] float32
    arrivals: DeviceArray  # [NUM_ARRIVALS] uint32: counters of blocks, 0 between kernels
    num_used: int
    input_weight: DeviceArray | None = None  # [H] float32
    output_scales: DeviceArray | None = None  # [experts] float32
