"""The storage formats of weights: ggml tensor types as rows of one table, with what each takes once it is packed.

A tensor's rows are cut into blocks of `block_elements` numbers, each stored in `block_bytes` bytes; a row always holds
whole blocks. Names, numbers and layouts are ggml's (``ggml.h``: ``enum ggml_type``, ``ggml-common.h``: ``block_*``).
In device memory a matrix is cut into units of 16 rows by one or four chunks of 64 columns, whose numbers lie in planes
(`kernels/cuda/common/dequant.cuh` describes them and has a row for each format, too).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

UNIT_ROWS = 16
CHUNK = 64  # columns


@dataclass(frozen=True, eq=False)
class Format:
    """How a tensor's numbers are stored. Its properties are kept, as every launch asks for them."""

    name: str
    ggml_type: int
    block_elements: int
    block_bytes: int
    # Packed, of 16 rows by 64 columns: low bits of codes, high bits, scales; of a unit of four such: super-scales.
    # Types that the kernels do not read have none of these.
    code_bytes: int = 0
    high_bytes: int = 0
    scale_bytes: int = 0
    super_bytes: int = 0
    fits_widest: bool = False  # integers times a scale for each 32: its numbers are `WIDEST`'s too, bit for bit
    has_row_base: bool = False  # scales are relative to the largest exponent of a row, which is kept apart

    def row_bytes(self, num_elements: int) -> int:
        """Bytes of a row of ``num_elements``, which must be a multiple of `block_elements`."""
        assert num_elements % self.block_elements == 0, f"{num_elements} elements are no whole {self.name} blocks"
        return num_elements // self.block_elements * self.block_bytes

    @property
    def is_scaled(self) -> bool:
        """Whether numbers are codes with scales, not floats."""
        return self.scale_bytes > 0

    @cached_property
    def unit_chunks(self) -> int:
        """Chunks of 64 columns in a unit: a unit is as wide as a super-block of the K formats."""
        return max(1, self.block_elements // CHUNK)

    @cached_property
    def unit_bytes(self) -> int:
        """Bytes of a packed unit."""
        return self.unit_chunks * (self.code_bytes + self.high_bytes + self.scale_bytes) + self.super_bytes

    @cached_property
    def ring_units(self) -> int:
        """Units that a warp copies ahead of its products of one to four tokens: twice UNITS_PER_COPY of dequant.cuh."""
        return 2 if self.unit_chunks > 1 or self.block_bytes == 4 else 4

    @cached_property
    def lane_bytes(self) -> int:
        """Bytes that a lane of a warp takes in shared memory for a chunk of 16 rows: each holds its scales itself."""
        return (self.code_bytes + self.high_bytes) // 32 + (self.scale_bytes + self.super_bytes) // 8


FORMATS: dict[str, Format] = {
    format_.name: format_
    for format_ in (
        #      name, ggml type, block: elements, bytes; packed: codes, high bits, scales, super-scales
        Format("F32", 0, 1, 4, 4096, 0, 0, 0),
        Format("F16", 1, 1, 2, 2048, 0, 0, 0),
        Format("BF16", 30, 1, 2, 2048, 0, 0, 0),
        # f16 d, 16 nibble pairs
        Format("Q4_0", 2, 32, 18, 512, 0, 64, 0, fits_widest=True),
        # f16 d, f16 m, 16 nibble pairs
        Format("Q4_1", 3, 32, 20, 512, 0, 128, 0),
        # f16 d, 32 high bits, 16 nibble pairs
        Format("Q5_0", 6, 32, 22, 512, 128, 64, 0, fits_widest=True),
        # f16 d, f16 m, 32 high bits, 16 nibble pairs
        Format("Q5_1", 7, 32, 24, 512, 128, 128, 0),
        # f16 d, 32 int8
        Format("Q8_0", 8, 32, 34, 1024, 0, 64, 0, fits_widest=True),
        # f16 d, f16 dmin, 8 6-bit scales and mins, 128 nibble pairs
        Format("Q4_K", 12, 256, 144, 512, 0, 64, 64),
        # the same and 256 high bits before the nibbles
        Format("Q5_K", 13, 256, 176, 512, 128, 64, 64),
        # 128 low nibble pairs, 64 high bit quads, 16 int8 scales, f16 d
        Format("Q6_K", 14, 256, 210, 512, 256, 64, 32),
        # E8M0 exponent, 16 pairs of E2M1
        Format("MXFP4", 39, 32, 17, 512, 0, 32, 0, has_row_base=True),
    )
}
"""Name -> format, of every type that the kernels read."""

BY_GGML_TYPE: dict[int, Format] = {format_.ggml_type: format_ for format_ in FORMATS.values()}

WIDEST = FORMATS["Q8_0"]
"""What tensors of several formats are packed in, if all of them fit it."""
