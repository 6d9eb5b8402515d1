"""The storage formats of weights: ggml tensor types as rows of one table.

A tensor's rows are cut into blocks of `block_elements` numbers, each stored in `block_bytes` bytes; a row always holds
whole blocks. Names, numbers and layouts are ggml's (``ggml.h``: ``enum ggml_type``, ``ggml-common.h``: ``block_*``).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, eq=False)
class Format:
    """How a tensor's numbers are stored."""

    name: str
    ggml_type: int
    block_elements: int
    block_bytes: int

    def row_bytes(self, num_elements: int) -> int:
        """Bytes of a row of ``num_elements``, which must be a multiple of `block_elements`."""
        assert num_elements % self.block_elements == 0, f"{num_elements} elements are no whole {self.name} blocks"
        return num_elements // self.block_elements * self.block_bytes


FORMATS: dict[str, Format] = {
    row[0]: Format(*row)
    for row in (
        # name, ggml type, elements, bytes        layout of a block
        ("F32", 0, 1, 4),
        ("F16", 1, 1, 2),
        ("BF16", 30, 1, 2),
        ("Q4_0", 2, 32, 18),  #                   f16 d, 16 nibble pairs
        ("Q4_1", 3, 32, 20),  #                   f16 d, f16 m, 16 nibble pairs
        ("Q5_0", 6, 32, 22),  #                   f16 d, 32 high bits, 16 nibble pairs
        ("Q5_1", 7, 32, 24),  #                   f16 d, f16 m, 32 high bits, 16 nibble pairs
        ("Q8_0", 8, 32, 34),  #                   f16 d, 32 int8
        ("Q4_K", 12, 256, 144),  #                f16 d, f16 dmin, 8 6-bit scales and mins, 128 nibble pairs
        ("Q5_K", 13, 256, 176),  #                the same and 256 high bits before the nibbles
        ("Q6_K", 14, 256, 210),  #                128 low nibble pairs, 64 high bit quads, 16 int8 scales, f16 d
        ("MXFP4", 39, 32, 17),  #                 E8M0 exponent, 16 pairs of E2M1
    )
}
"""Name -> format, of every type that the kernels read."""

BY_GGML_TYPE: dict[int, Format] = {row.ggml_type: row for row in FORMATS.values()}
