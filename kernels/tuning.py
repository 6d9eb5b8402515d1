"""What is known of chips, and launch shapes chosen by it: a shape changes how long a kernel takes, never its bits."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache


@dataclass(frozen=True, slots=True)
class Chip:
    """What a launch depends on."""

    arch: str  # sm_XY, as the loader compiles for it
    num_processors: int  # streaming multiprocessors
    shared_bytes: int  # most shared memory of a block, static and dynamic together

    @property
    def has_dependent_launch(self) -> bool:
        """Whether a kernel can start before the one ahead of it has ended (griddepcontrol): Hopper and later."""
        return int(self.arch.removeprefix("sm_").rstrip("a")) >= 90

    @property
    def has_wgmma(self) -> bool:
        """Whether it has Hopper's warpgroup products."""
        return self.arch == "sm_90a"

    def alone(self, shared_bytes: int) -> int:
        """Shared memory with which no second block fits on a processor: blocks that start while the kernel ahead still
        runs would be put together where that leaves room, instead of one on each processor."""
        return max(shared_bytes, self.shared_bytes // 2) if self.has_dependent_launch else shared_bytes


H100 = Chip("sm_90a", 132, 227 * 1024)
"""Stands in where a step is planned with no GPU at hand."""
A100 = Chip("sm_80", 108, 163 * 1024)
"""Stands for all others where kernels are listed."""

SUMMING_SIZES = (16, 32, 64, 128)
"""Tokens of the tiles of matmul_tile_N whose blocks can add up segments."""
LARGEST_SIZE = 256
"""Tokens of a tile whose block has one segment; on Hopper only."""
RESIDENTS = {16: 4, 32: 3, 64: 2}
"""Blocks on a processor, one for other sizes, as in matmul_tile.cuh: while one waits, others unpack weights."""

SHAPES_APART = 64
"""Shapes are chosen at multiples of so many tokens, and at the smallest tile: between two of them memory grows with the
tokens, so that it can be planned at each."""

# Microseconds, read off an H100's profile: good enough to tell shapes apart.
_CHUNK_US = {16: 0.5, 32: 0.5, 64: 0.52, 128: 0.55, 256: 0.85}  # of 64 columns, of one block on a processor
_SHARED_CHUNK = 1.15  # times as long where two blocks share the processor
_BLOCK_US = 5.0  # to start, and to store
_REDUCE_US, _REDUCED_BYTES_PER_US = 3.0, 2.5e6


@lru_cache(4096)
def tile_shape(chip: Chip, num_rows: int, num_chunks: int, num_segments: int, num_tokens: int) -> tuple[int, int]:
    """(tokens of a tile, 1 or the number of segments as blocks of their own) for a product on ``num_rows`` outputs."""
    smallest = SUMMING_SIZES[0]
    num_tokens = smallest if num_tokens <= smallest else -(-num_tokens // SHAPES_APART) * SHAPES_APART

    def estimate(size: int, splits: int) -> float:
        blocks = -(-num_rows // 128) * -(-num_tokens // size) * splits
        residents = chip.num_processors * RESIDENTS.get(size, 1)
        chunk_us = _CHUNK_US[size] * (_SHARED_CHUNK if chip.num_processors < blocks and size <= 64 else 1.0)
        us = -(-blocks // residents) * (num_chunks / splits * chunk_us + _BLOCK_US)
        if splits > 1:  # partial sums are written and read
            us += _REDUCE_US + 8 * splits * num_tokens * num_rows / _REDUCED_BYTES_PER_US
        return us

    shapes = [(size, splits) for size in SUMMING_SIZES for splits in {1, num_segments}]
    if chip.has_wgmma:
        shapes.append((LARGEST_SIZE, num_segments))
    return min(shapes, key=lambda shape: estimate(*shape))
