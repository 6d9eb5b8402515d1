"""The storage formats of weights: ggml tensor types as rows of one table, for Python and for the kernels.

A tensor's rows are cut into blocks of `block_elements` numbers, each stored in `block_bytes` bytes; a row always holds
whole blocks. Names, numbers and layouts are ggml's (``ggml.h``: ``enum ggml_type``, ``ggml-common.h``: ``block_*``).
In device memory a matrix is cut into units of 16 rows by one or four chunks of 64 columns, whose numbers lie in planes
that `kernels/cuda/common/layout.cuh` describes. There a row of the table is ``FormatTraits<NAME>``.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import cached_property

from kernels.runtime.cuda_constants import declare_enum, declare_table, declare_traits
from kernels.weights import grids
from kernels.weights.grids import Grid

UNIT_ROWS = 16
CHUNK = 64  # columns


class Codes(Enum):
    """What a code stands for, before it is scaled."""

    UNKNOWN = "a type that the kernels do not read"
    FLOAT32 = "a float"
    FLOAT16 = "a float16"
    BFLOAT16 = "the upper half of a float"
    INTEGERS = "the code less `zero`"
    NON_LINEAR = "one of 16 integers, `IQ4_NUMBERS`"
    GRID = "a point of a grid, the magnitudes of several numbers; their signs lie apart"
    E2M1 = "a float of 4 bits"


class Scaling(Enum):
    """What codes are scaled by, and the bytes of this in a packed unit."""

    UNSCALED = ("nothing", 0, 0)
    SCALE = ("float16 of 32 columns", 64, 0)
    SCALE_MIN = ("float16 scale and minimum of 32 columns", 128, 0)
    SUPER_SCALES = ("int8 of 16 columns, times float16 of 256", 64, 32)
    SUPER_SCALES_32 = ("int8 of 32 columns, times float16 of 256", 32, 32)
    SUPER_MINS = ("6-bit scale and minimum of 32 columns, times float16 scale and minimum of 256", 64, 64)
    SUPER_MINS_16 = ("4-bit scale and minimum of 16 columns, times float16 scale and minimum of 256", 64, 64)
    ODD_SCALES = ("odd number below 32 of 16 columns, times float16 of 256", 32, 32)
    EXPONENT = ("power of two of 32 columns, relative to the largest of the row: `RowBase` of scales.cuh", 32, 0)

    def __init__(self, meaning: str, scale_bytes: int, super_bytes: int) -> None:
        self.meaning = meaning
        self.scale_bytes = scale_bytes  # of 16 rows by 64 columns
        self.super_bytes = super_bytes  # super-scales of 16 rows by 256 columns


@dataclass(frozen=True, eq=False)
class Format:
    """How a tensor's numbers are stored. Its properties are kept, as every launch asks for them."""

    name: str
    ggml_type: int
    block_elements: int
    block_bytes: int
    codes: Codes = Codes.UNKNOWN
    code_bits: int = 0  # 2 to 6, 8, 16 or 32
    scaling: Scaling = Scaling.UNSCALED
    zero: int = 0  # INTEGERS: the code that stands for 0
    # Where a block has what, in bytes from its beginning:
    codes_at: int = 0  # codes, their low 4 bits, or if they have 2 or 3 bits the low 2; of points the low 8
    high_at: int = 0  # the bits above those
    signs_at: int = 0  # GRID
    scales_at: int = 0
    super_at: int = 0  # super-scales
    grid: Grid | None = None
    fits_widest: bool = False  # integers times a scale for each 32: its numbers are `WIDEST`'s too, bit for bit

    def row_bytes(self, num_elements: int) -> int:
        """Bytes of a row of ``num_elements``, which must be a multiple of `block_elements`."""
        assert num_elements % self.block_elements == 0, f"{num_elements} elements are no whole {self.name} blocks"
        return num_elements // self.block_elements * self.block_bytes

    @property
    def is_scaled(self) -> bool:
        """Whether numbers are codes with scales, not floats."""
        return self.scaling is not Scaling.UNSCALED

    @cached_property
    def has_row_base(self) -> bool:
        """Whether scales are taken relative to the largest exponent of a row, which is kept apart."""
        return self.scaling in (Scaling.EXPONENT, Scaling.SUPER_MINS_16)

    @property
    def has_exponents(self) -> bool:
        """Whether scales are powers of two."""
        return self.scaling is Scaling.EXPONENT

    @cached_property
    def takes_many_instructions(self) -> bool:
        """Whether unpacking, not memory, bounds how fast a warp goes on."""
        return self.codes in (Codes.NON_LINEAR, Codes.GRID) and not self.is_k

    @cached_property
    def is_k(self) -> bool:
        """Whether codes and scales lie in units of 256 columns."""
        return self.unit_chunks > 1 and self.grid is None

    @cached_property
    def is_streamed(self) -> bool:
        """Whether lanes load one token's weights straight into registers: `matmul_streamed.cuh`."""
        return self.is_scaled and self.grid is None

    @cached_property
    def streamed_chunks(self) -> int:
        """Chunks that a lane loads together: those of a unit, or of as many units as take few registers."""
        return max(self.unit_chunks, 2 if self.code_bits == 8 else 4)

    @cached_property
    def streamed_places(self) -> int:
        """How many such groups it has registers for."""
        of_rows = self.scaling.scale_bytes + self.scaling.super_bytes  # each lane has those of one chunk
        lane_words = self.streamed_chunks * (self.code_bytes + self.high_bytes) // 128 + of_rows // 32
        return 2 if lane_words <= 17 else 1

    @cached_property
    def narrow_warps(self) -> int:
        """Up to how many warps of a block have registers for two of them, if those of larger ones have not; else 0."""
        most = 16 if self.unit_chunks > 1 else 20 if self.streamed_chunks == 2 else 0
        return most if self.is_streamed and self.streamed_places == 1 else 0

    @cached_property
    def block_warps(self) -> int:
        """Warps of a block of matmul_gemv* or matmul_small_batch: as many as have the registers that they need."""
        return 24 if self.is_streamed and self.streamed_chunks == 2 else 20

    @cached_property
    def routed_block_warps(self) -> int:
        """The same of matmul_gemv_routed. Its warps have but few units each: more of them take less time."""
        return 24 if self.streamed_places == 1 and self.is_streamed and self.code_bits == 4 else self.block_warps

    @cached_property
    def low_bits(self) -> int:
        """Bits of a code that lie together with others': the low ones, if it has no whole bytes."""
        return self.code_bits if self.code_bits >= 8 else 4 if self.code_bits >= 4 else 2

    @cached_property
    def code_bytes(self) -> int:
        """Packed, of 16 rows by 64 columns: low bits of codes; of points 8 bits of an index, then what it has more."""
        if self.grid is None:
            return 128 * self.low_bits
        return UNIT_ROWS * CHUNK // self.grid.num_coordinates + (32 if self.grid.index_bits > 8 else 0)

    @cached_property
    def high_bytes(self) -> int:
        """Packed, of 16 rows by 64 columns: bits of codes beyond the low ones; signs of points."""
        return 128 if self.grid else 128 * (self.code_bits - self.low_bits)

    @cached_property
    def grid_bytes(self) -> int:
        """Shared memory of a block for the points."""
        return len(self.grid.points) * self.grid.num_coordinates if self.grid else 0

    @cached_property
    def unit_chunks(self) -> int:
        """Chunks of 64 columns in a unit: a unit is as wide as a super-block of the K formats."""
        return max(1, self.block_elements // CHUNK)

    @cached_property
    def unit_bytes(self) -> int:
        """Bytes of a packed unit."""
        chunk_bytes = self.code_bytes + self.high_bytes + self.scaling.scale_bytes
        return self.unit_chunks * chunk_bytes + self.scaling.super_bytes

    @cached_property
    def units_per_copy(self) -> int:
        """Units that a warp copies together for its products of one to four tokens."""
        return 1 if self.unit_chunks > 1 or self.code_bits == 32 else 2

    @cached_property
    def ring_units(self) -> int:
        """Units that a warp copies ahead of its products: two copies are under way."""
        return 2 * self.units_per_copy

    @cached_property
    def lane_bytes(self) -> int:
        """Bytes of shared memory for a lane of a warp and a chunk of 16 rows: each has scales and points of its own."""
        of_rows = self.scaling.scale_bytes + self.scaling.super_bytes + (self.code_bytes if self.grid else 0)
        return (self.high_bytes + (0 if self.grid else self.code_bytes)) // 32 + of_rows // 8


IQ4_NUMBERS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the codes of IQ4_NL and IQ4_XS stand for."""

FORMATS: dict[str, Format] = {
    format_.name: format_
    for format_ in (
        #      name, ggml type, block: elements, bytes; codes: kind, bits
        Format("F32", 0, 1, 4, Codes.FLOAT32, 32),
        Format("F16", 1, 1, 2, Codes.FLOAT16, 16),
        Format("BF16", 30, 1, 2, Codes.BFLOAT16, 16),
        # f16 d, 16 nibble pairs
        Format("Q4_0", 2, 32, 18, Codes.INTEGERS, 4, Scaling.SCALE, zero=8, codes_at=2, fits_widest=True),
        # f16 d, f16 m, 16 nibble pairs
        Format("Q4_1", 3, 32, 20, Codes.INTEGERS, 4, Scaling.SCALE_MIN, codes_at=4),
        # f16 d, 32 high bits, 16 nibble pairs
        Format("Q5_0", 6, 32, 22, Codes.INTEGERS, 5, Scaling.SCALE, zero=16, high_at=2, codes_at=6, fits_widest=True),
        # f16 d, f16 m, 32 high bits, 16 nibble pairs
        Format("Q5_1", 7, 32, 24, Codes.INTEGERS, 5, Scaling.SCALE_MIN, high_at=4, codes_at=8),
        # f16 d, 32 int8, packed with 128 added
        Format("Q8_0", 8, 32, 34, Codes.INTEGERS, 8, Scaling.SCALE, zero=128, codes_at=2, fits_widest=True),
        # 16 4-bit scales and mins, 64 code quads, f16 d, f16 dmin
        Format("Q2_K", 10, 256, 84, Codes.INTEGERS, 2, Scaling.SUPER_MINS_16, codes_at=16, super_at=80),
        # 256 high bits, 64 low code quads, 16 6-bit scales, f16 d
        Format(
            "Q3_K", 11, 256, 110, Codes.INTEGERS, 3, Scaling.SUPER_SCALES,
            zero=4, codes_at=32, scales_at=96, super_at=108,
        ),
        # f16 d, f16 dmin, 8 6-bit scales and mins, 128 nibble pairs
        Format("Q4_K", 12, 256, 144, Codes.INTEGERS, 4, Scaling.SUPER_MINS, scales_at=4, codes_at=16),
        # the same and 256 high bits before the nibbles
        Format("Q5_K", 13, 256, 176, Codes.INTEGERS, 5, Scaling.SUPER_MINS, scales_at=4, high_at=16, codes_at=48),
        # 128 low nibble pairs, 64 high bit quads, 16 int8 scales, f16 d
        Format(
            "Q6_K", 14, 256, 210, Codes.INTEGERS, 6, Scaling.SUPER_SCALES,
            zero=32, high_at=128, scales_at=192, super_at=208,
        ),
        # f16 d, of every 32 numbers 4 indices, 4 times 7 signs, a 4-bit scale
        Format("IQ2_XXS", 16, 256, 66, Codes.GRID, 8, Scaling.ODD_SCALES, codes_at=2, grid=grids.IQ2_XXS),
        # f16 d, 32 9-bit indices with 7 signs, 16 4-bit scales
        Format("IQ2_XS", 17, 256, 74, Codes.GRID, 9, Scaling.ODD_SCALES, codes_at=2, scales_at=66, grid=grids.IQ2_XS),
        # f16 d, 32 low bytes of indices, 256 signs, 32 2-bit high parts, 16 4-bit scales
        Format(
            "IQ2_S", 22, 256, 82, Codes.GRID, 10, Scaling.ODD_SCALES,
            codes_at=2, signs_at=34, high_at=66, scales_at=74, grid=grids.IQ2_S,
        ),
        # f16 d, 64 indices, of every 32 numbers 4 times 7 signs, a 4-bit scale
        Format("IQ3_XXS", 18, 256, 98, Codes.GRID, 8, Scaling.ODD_SCALES, codes_at=2, signs_at=66, grid=grids.IQ3_XXS),
        # f16 d, 64 low bytes of indices, 64 ninth bits, 256 signs, 8 4-bit scales
        Format(
            "IQ3_S", 21, 256, 110, Codes.GRID, 9, Scaling.ODD_SCALES,
            codes_at=2, high_at=66, signs_at=74, scales_at=106, grid=grids.IQ3_S,
        ),
        # f16 d, 16 nibble pairs
        Format("IQ4_NL", 20, 32, 18, Codes.NON_LINEAR, 4, Scaling.SCALE, codes_at=2),
        # f16 d, 8 6-bit scales, 128 nibble pairs
        Format("IQ4_XS", 23, 256, 136, Codes.NON_LINEAR, 4, Scaling.SUPER_SCALES_32, scales_at=2, codes_at=8),
        # E8M0 exponent, 16 pairs of E2M1
        Format("MXFP4", 39, 32, 17, Codes.E2M1, 4, Scaling.EXPONENT, codes_at=1),
    )
}  # fmt: skip
"""Name -> format, of every type that the kernels read."""

BY_GGML_TYPE: dict[int, Format] = {format_.ggml_type: format_ for format_ in FORMATS.values()}

WIDEST = FORMATS["Q8_0"]
"""What tensors of several formats are packed in, if all of them fit it."""


_SHARED_TRAITS = (
    *("block_elements", "block_bytes", "codes", "code_bits", "low_bits", "zero", "scaling", "has_row_base"),
    *("is_streamed", "block_warps", "narrow_warps", "routed_block_warps", "streamed_chunks", "streamed_places"),
    *("code_bytes", "high_bytes", "unit_bytes", "units_per_copy"),
)
"""What the kernels call by the same name."""
_OF_BLOCK = "codes_at", "high_at", "signs_at", "scales_at", "super_at"


def _traits(format_: Format) -> dict[str, int | Enum]:
    traits = {name: getattr(format_, name) for name in _SHARED_TRAITS}
    traits |= {f"block_{name}": getattr(format_, name) for name in _OF_BLOCK}
    traits |= {"scale_bytes": format_.scaling.scale_bytes, "super_bytes": format_.scaling.super_bytes}
    return traits | {"chunks": format_.unit_chunks}


def _grid_traits(grid: Grid) -> dict[str, int]:
    magnitudes = bytes(grid.magnitudes).ljust(8, b"\0")
    return {
        "num_points": len(grid.points),
        "num_coordinates": grid.num_coordinates,
        "unit": grid.unit,
        "first_magnitudes": int.from_bytes(magnitudes[:4], "little"),
        "last_magnitudes": int.from_bytes(magnitudes[4:], "little"),
    }


_HEADER = "common/layout.cuh"
declare_enum(_HEADER, "Format", FORMATS)
declare_enum(_HEADER, "Codes", [codes.name for codes in Codes])
declare_enum(_HEADER, "Scaling", [scaling.name for scaling in Scaling])
declare_traits(_HEADER, "FormatTraits", {(name,): _traits(format_) for name, format_ in FORMATS.items()})
declare_table(_HEADER, "IQ4_NUMBERS", IQ4_NUMBERS)
_GRIDS = {name: format_.grid for name, format_ in FORMATS.items() if format_.grid}
declare_traits("common/grid.cuh", "GridTraits", {(name,): _grid_traits(grid) for name, grid in _GRIDS.items()})
for _name, _grid in _GRIDS.items():
    declare_table("common/grid.cuh", f"{_name}_POINTS", _grid.points)
