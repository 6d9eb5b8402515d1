"""Matrices in device memory, in the layout that the kernels read (`kernels/cuda/common/dequant.cuh` describes it).

Still quantised, and lossless: the same numbers as in the file in another order. Codes take what they take in the file;
the K formats' 6-bit scales take 8 bits, rows are padded to multiples of 64 and columns to whole units.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from kernels.runtime.device_array import DeviceArray, pointer_of
from kernels.weights.formats import FORMATS, Format

UNIT_ROWS = 16
BLOCK_ROWS = 64
CHUNK = 64  # columns
FORMAT_IDS = {name: number for number, name in enumerate(FORMATS)}
"""What the kernels call the formats: `enum Format` of dequant.cuh."""

_CODE_BYTES = {"F32": 4096, "F16": 2048, "BF16": 2048, "Q8_0": 1024}  # of 16 rows x 64 columns; 512 for the others
_HIGH_BYTES = {"Q5_0": 128, "Q5_1": 128, "Q5_K": 128, "Q6_K": 256}
_SCALE_BYTES = {"F32": 0, "F16": 0, "BF16": 0, "Q4_1": 128, "Q5_1": 128, "MXFP4": 32}  # 64 for the others
_SUPER_BYTES = {"Q4_K": 64, "Q5_K": 64, "Q6_K": 32}  # of a unit of four chunks

MAX_SEGMENTS = 20
WARPS_WANTED = 2000  # so many have a segment of a tile each when a GPU has one token: what it can keep busy
READY_CHUNKS = 2  # that a warp unpacks while it waits for x
EXPERTS_AT_ONCE = 4  # as many share those


def unit_chunks(format_: Format) -> int:
    """Chunks of 64 columns in a unit: a unit is as wide as a super-block of the K formats."""
    return 4 if format_.block_elements == 256 else 1


def unit_bytes(format_: Format) -> int:
    """Bytes of 16 rows of a unit."""
    name = format_.name
    chunk_bytes = _CODE_BYTES.get(name, 512) + _HIGH_BYTES.get(name, 0) + _SCALE_BYTES.get(name, 64)
    return unit_chunks(format_) * chunk_bytes + _SUPER_BYTES.get(name, 0)


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
    base: DeviceArray | None  # MXFP4: int32 [num_experts, num_rows], the largest exponent of each row
    bias: DeviceArray | None  # float32 [num_experts, num_rows]

    @cached_property
    def pointers(self) -> tuple[int, int, int]:
        """Addresses of ``packed``, ``bias`` and ``base``."""
        return self.packed.pointer, pointer_of(self.bias), pointer_of(self.base)

    @cached_property
    def num_chunks(self) -> int:
        """Chunks of 64 columns, the last one padded."""
        return -(-self.width // CHUNK)

    @cached_property
    def num_units(self) -> int:
        """Units of columns, the last one padded."""
        return -(-self.num_chunks // unit_chunks(self.format))

    @cached_property
    def num_tiles(self) -> int:
        """Tiles of 16 rows, the last one padded."""
        return -(-self.num_rows // UNIT_ROWS)

    @cached_property
    def num_segments(self) -> int:
        """Parts of k that are summed on their own, then in order.

        Depends on the matrix and on nothing else, so that a row's result is the same bits in every batch and on every
        GPU.
        """
        tiles = self.num_tiles * (1 if self.num_experts == 1 else EXPERTS_AT_ONCE)
        most = max(1, min(MAX_SEGMENTS, WARPS_WANTED // tiles, self.num_units, self.num_chunks // READY_CHUNKS))
        return -(-self.num_units // -(-self.num_units // most))  # no more than the longest of them asks for

    @cached_property
    def expert_bytes(self) -> int:
        """Bytes of one expert's matrix."""
        return packed_bytes(self.format, self.num_rows, self.width)


def few_ring_bytes(format_: Format) -> int:
    """Bytes of shared memory of a warp's weights in matmul_few: two times `FEW_GROUP` of dequant.cuh units."""
    group = 1 if format_.name == "F32" or unit_chunks(format_) == 4 else 2
    return 2 * group * unit_bytes(format_)


def staged_bytes(format_: Format) -> int:
    """Bytes of shared memory that a warp takes for a chunk of 16 rows: its 32 lanes hold their scales each."""
    name = format_.name
    per_lane = _CODE_BYTES.get(name, 512) // 32 + _HIGH_BYTES.get(name, 0) // 32
    return 32 * (per_lane + _SCALE_BYTES.get(name, 64) // 8 + _SUPER_BYTES.get(name, 0) // 8)


def packed_bytes(format_: Format, num_rows: int, width: int) -> int:
    """Bytes of one packed matrix."""
    num_units = -(-width // (CHUNK * unit_chunks(format_)))
    return -(-num_rows // BLOCK_ROWS) * (BLOCK_ROWS // UNIT_ROWS) * num_units * unit_bytes(format_)


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """Matrices on the same input, their outputs side by side."""

    parts: tuple[PackedMatrix, ...]

    @property
    def num_outputs(self) -> int:
        """Rows of all matrices together."""
        return sum(part.num_rows for part in self.parts)


@dataclass(frozen=True, slots=True, eq=False)
class Experts:
    """The feed-forward networks of a mixture, stacked."""

    gate_up: PackedMatrix
    down: PackedMatrix
