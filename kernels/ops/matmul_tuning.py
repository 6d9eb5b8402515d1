"""How products are launched, and which kernels are for how many tokens: what changes their time, never their bits."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from kernels.ops.norm import NORM_PARTITIONS
from kernels.runtime.cuda_constants import declare_constants, declare_traits
from kernels.runtime.gpu_spec import GpuSpec
from kernels.weights.formats import FORMATS, UNIT_ROWS, Format
from kernels.weights.packed import PackedMatrix, Projection

MAX_SMALL_BATCH = 4  # tokens up to which x is kept in shared memory whole: more take less time in tiles
MAX_SUMMED_WARPS = 24  # of a block of matmul_gemv_summed
STREAMED_SCALE_BYTES = 1280  # of a warp that streams weights: scales of 256 columns
MAX_NORMED_WIDTH = 4096  # of a row that every block of matmul_gemv_normed norms for itself
BLOCK_OUTPUTS = 128  # of a block of matmul_tiled_N

SUMMING_SIZES = (16, 32, 64, 128)
"""Tokens of the tiles of matmul_tiled_N whose blocks can add up partitions."""
LARGEST_SIZE = 256
"""Tokens of a tile whose block has one partition; on Hopper only."""
ROUTED_SIZES = (16, 32, 48, 64, 80, 96, 128, 160, LARGEST_SIZE)
"""The same of experts in MXFP4, on Hopper: `FAR_AHEAD`. Blocks of up to `MOST_SUMMED` tokens can add up partitions."""
MOST_SUMMED = 160

_SM_BYTES = 216 * 1024  # of shared memory, for the blocks of matmul_tiled_N on an SM of a Hopper GPU
_BARRIER_BYTES = 256  # of such a block, for its barriers
_ALIGNMENT = 1024  # of x in it
_SCALES_ALIGNMENT = 32  # of those of warps that stream weights
_PORTABLE_BYTES = 96 * 1024  # of shared memory, for a block on other GPUs
_MAX_STAGES = 8  # of x in it: as many chunks
_FAR_STAGES = 4  # of weights in it that are copied far ahead, where there is room
_BLOCKS_PER_SM = {16: 4, 32: 3, 48: 2, 64: 2, 80: 2}
"""Occupancy by the tokens of a block's tile, one block for other sizes: while one waits, others unpack weights."""

SHAPES_APART = 64
"""Shapes are chosen at the tiles that are smaller and at multiples of so many tokens."""


class SmallBatchShape(NamedTuple):
    """How `multiply_small_batch` is launched: about one block an SM, so that all have the same share of work."""

    num_blocks: int
    tiles_at_once: int  # of a block
    num_warps: int
    ring_at: int  # where in shared memory weights begin, after the rows of x and the sums
    shared_bytes: int


def small_batch_shape(
    gpu: GpuSpec, matrix: PackedMatrix, num_tokens: int, *, normed: bool = False, num_products: int = 1
) -> SmallBatchShape:
    """For ``num_tokens`` in a block and so many products at the same time."""
    partitions = matrix.num_partitions
    sms = max(1, gpu.num_sms // num_products)
    tiles = -(-matrix.num_tiles // sms)
    most_warps = matrix.format.block_warps if num_products == 1 else matrix.format.routed_block_warps
    rounds = -(-tiles // max(1, most_warps // partitions))
    for at_once in range(-(-tiles // rounds), 0, -1):
        num_warps = at_once * partitions
        if num_tokens == 1:
            sums_bytes = 2 * (NORM_PARTITIONS + at_once * UNIT_ROWS * (-(-partitions // 4) | 1) * 4) * 4
            num_warps = max(num_warps, NORM_PARTITIONS if normed else 1)
            ring_at = matrix.num_chunks * 128 + sums_bytes + (4 * matrix.width if normed else 0)
        else:
            columns = num_tokens + num_tokens % 2
            ring_at = num_tokens * (matrix.num_chunks * 128 + 16) + 2 * num_warps * UNIT_ROWS * columns * 4
        shared_bytes = ring_at + num_warps * _warp_bytes(matrix, num_tokens)
        if shared_bytes <= _room_bytes(gpu, matrix):
            break
    num_blocks = min(-(-matrix.num_tiles // at_once), sms)
    return SmallBatchShape(num_blocks, at_once, num_warps, ring_at, gpu.spread(shared_bytes, num_blocks))


def summed_shape(gpu: GpuSpec, matrix: PackedMatrix, num_used: int) -> SmallBatchShape | None:
    """Of `matmul_gemv_summed`; None where it would take more than a tile for each SM, or a block more than there is."""
    num_warps = num_used * matrix.num_partitions
    sums_bytes = num_used * UNIT_ROWS * ((-(-matrix.num_partitions // 4) | 1) * 4 + 1) * 4 + num_used * 4
    ring_at = -(-(num_used * matrix.num_chunks * 128 + sums_bytes) // _SCALES_ALIGNMENT) * _SCALES_ALIGNMENT
    shared_bytes = ring_at + num_warps * _warp_bytes(matrix, num_tokens=1)
    fits = num_warps <= MAX_SUMMED_WARPS and shared_bytes <= _room_bytes(gpu, matrix)
    if not fits or matrix.num_tiles > gpu.num_sms:
        return None
    return SmallBatchShape(matrix.num_tiles, 1, num_warps, ring_at, shared_bytes)


def gains_in_narrow_blocks(matrix: PackedMatrix, shape: SmallBatchShape, *, normed: bool) -> bool:
    """Whether threads of small blocks have registers for two groups of chunks where others have not, and use for them.

    Where each warp has but one group, those registers leave room for a block of the next kernel. While x is ``normed``
    the second group comes to the L2 cache as it is.
    """
    groups = -(-matrix.num_units // matrix.num_partitions) * matrix.format.unit_chunks / matrix.format.streamed_chunks
    has_more = groups > (2 if normed else 1) or matrix.num_tiles > shape.num_blocks * shape.tiles_at_once
    return has_more and shape.num_warps <= matrix.format.narrow_warps


def _warp_bytes(matrix: PackedMatrix, num_tokens: int) -> int:
    """Shared memory of a warp: its ring of weights, or where it streams these their scales."""
    if num_tokens == 1 and matrix.format.is_streamed:
        return STREAMED_SCALE_BYTES
    return matrix.format.ring_units * matrix.format.unit_bytes


def _room_bytes(gpu: GpuSpec, matrix: PackedMatrix) -> int:
    """Shared memory of a block beside the points of its weights' grid."""
    return gpu.shared_bytes - matrix.format.grid_bytes


def can_norm(gpu: GpuSpec, layers: Projection) -> bool:
    """Whether the blocks of `multiply_small_batch` can each make the norm of a single token."""
    return all(
        matrix.width <= MAX_NORMED_WIDTH
        and small_batch_shape(gpu, matrix, 1, normed=True).shared_bytes <= _room_bytes(gpu, matrix)
        for matrix in layers.matrices
    )


def is_small_batch(gpu: GpuSpec, layers: Projection, num_tokens: int) -> bool:
    """Whether `multiply_small_batch` is for so many tokens.

    Of several, x must leave half of the shared memory to weights.
    """
    return num_tokens <= MAX_SMALL_BATCH and all(_have_room(gpu, matrix, num_tokens) for matrix in layers.matrices)


def _have_room(gpu: GpuSpec, matrix: PackedMatrix, num_tokens: int) -> bool:
    x_bytes = num_tokens * matrix.num_chunks * 128
    if num_tokens > 1 and x_bytes > gpu.shared_bytes // 2:
        return False
    return small_batch_shape(gpu, matrix, num_tokens).shared_bytes <= _room_bytes(gpu, matrix)


def tokens_of_shapes(most: int) -> set[int]:
    """Below ``most``, the numbers of tokens at which shapes of products are chosen.

    Between two of them memory grows with the tokens, so that it can be planned at each.
    """
    return {size for size in SUMMING_SIZES if size < min(SHAPES_APART, most)} | {
        *range(SHAPES_APART, most, SHAPES_APART)
    }


# Microseconds, fitted to fourteen matrices of real models, 16 to 8,192 tokens, every shape, on an H200: within 7 % on
# average; what it chooses takes 0.2 % longer than the best, 9 % at worst.
_CHUNK_US = {
    16: 0.32,
    32: 0.34,
    48: 0.35,
    64: 0.36,
    80: 0.41,
    96: 0.4,
    128: 0.44,
    160: 0.5,
    256: 0.69,
}  # of 64 columns, of a block alone on an SM
_SHARED = 0.54  # as much more for each further block on it
_START_US, _STORE_US = 1.2, 0.017  # of the blocks that begin together; for each token of each of their tiles
_REDUCE_US, _REDUCED_BYTES_PER_US = 1.5, 4.4e6


class TileShape(NamedTuple):
    """How matmul_tiled_N is launched."""

    size: int  # tokens of a tile
    grid_partitions: int  # blocks that its partitions are computed by: 1, or one each
    estimated_us: float


@lru_cache(4096)
def tile_shape(gpu: GpuSpec, num_rows: int, num_chunks: int, num_partitions: int, num_tokens: int) -> TileShape:
    """For ``num_rows`` outputs."""
    num_tokens = shaped_as(num_tokens)

    def estimate(size: int, grid_partitions: int) -> float:
        def round_us(blocks: int) -> float:
            chunks_us = num_chunks / grid_partitions * _CHUNK_US[size] * (1 + _SHARED * (blocks - 1))
            return chunks_us + _START_US + blocks * size * _STORE_US

        blocks = -(-num_rows // 128) * -(-num_tokens // size) * grid_partitions
        blocks_per_sm = _BLOCKS_PER_SM.get(size, 1)
        rounds, more = divmod(-(-blocks // gpu.num_sms), blocks_per_sm)
        us = rounds * round_us(blocks_per_sm) + (round_us(more) if more else 0)
        if grid_partitions > 1:  # partial sums are written and read
            us += _REDUCE_US + 4 * (grid_partitions + 1) * num_tokens * num_rows / _REDUCED_BYTES_PER_US
        return us

    shapes = [(size, grid_partitions) for size in SUMMING_SIZES for grid_partitions in {1, num_partitions}]
    if gpu.has_wgmma:
        shapes.append((LARGEST_SIZE, num_partitions))
    return min((TileShape(*shape, estimate(*shape)) for shape in shapes), key=lambda shape: shape.estimated_us)


def routed_sizes(gpu: GpuSpec, *matrices: PackedMatrix) -> tuple[int, ...]:
    """Tokens of the tiles in which ``matrices`` of experts can be multiplied."""
    if not (gpu.has_wgmma and all(matrix.format.has_exponents for matrix in matrices)):
        return SUMMING_SIZES
    most = LARGEST_SIZE if all(matrix.num_partitions == 1 for matrix in matrices) else MOST_SUMMED
    return tuple(size for size in ROUTED_SIZES if size <= most)


@lru_cache(4096)
def routed_tile_size(sizes: tuple[int, ...], num_tokens: int, num_used: int, num_experts: int) -> int:
    """Which of ``sizes`` takes least time for the experts of ``num_tokens`` tokens.

    These are shared out at random; of `SUMMING_SIZES` about every second expert has a tile that is not full, beside
    those that are.
    """
    expert_tokens = shaped_as(num_tokens) * num_used / num_experts
    counts = [max(1.0, expert_tokens + deviation * math.sqrt(expert_tokens)) for deviation in _DEVIATIONS]

    def estimate(size: int) -> float:
        blocks = _BLOCKS_PER_SM.get(size, 1)
        if sizes == SUMMING_SIZES:
            num_tiles = max(1.0, expert_tokens / size + 0.5)
        else:
            num_tiles = sum(math.ceil(count / size) for count in counts)
        return num_tiles * _CHUNK_US[size] * (1 + _SHARED * (blocks - 1)) / blocks

    return min(sizes, key=estimate)


_DEVIATIONS = (-1.6, -1.0, -0.7, -0.4, -0.1, 0.1, 0.4, 0.7, 1.0, 1.6)  # of tenths of a normal distribution


def shaped_as(num_tokens: int) -> int:
    """The number of tokens that has the shapes of ``num_tokens``: see `tokens_of_shapes`."""
    smaller = (size for size in SUMMING_SIZES if num_tokens <= size < SHAPES_APART)
    return next(smaller, -(-num_tokens // SHAPES_APART) * SHAPES_APART)


class TileRing(NamedTuple):
    """What the shared memory of a block of matmul_tiled_N holds: see `Ring` of the two .cuh files."""

    blocks_per_sm: int  # occupancy: for so many blocks on an SM the kernel leaves registers
    group: int  # chunks between two barriers of the block
    weight_stages: int  # groups of weights, or units where these hold several
    stages: int  # groups of x
    num_bytes: int


def _hopper_ring(format_: Format, size: int) -> TileRing:
    """With as many blocks on an SM as have the stages they need, and as many stages as fit then."""
    is_k, x_bytes = format_.unit_chunks > 1, size * 128
    group = 1 if size > SUMMING_SIZES[-1] or not format_.is_scaled else 2
    rest = _ALIGNMENT + _BARRIER_BYTES + format_.ring_units * 2 * 4 * format_.unit_bytes
    # Blocks of a K format have more weights to unpack at once, and need more registers.
    blocks_per_sm = fitting = 3 if is_k and size == 16 else _BLOCKS_PER_SM.get(size, 1)

    def room_bytes() -> int:  # for stages of x
        return _SM_BYTES // fitting - format_.grid_bytes - rest

    while fitting > 1 and max(4, 3 * group) * x_bytes > room_bytes():
        fitting -= 1
    stages = min(_MAX_STAGES, room_bytes() // x_bytes) // group
    num_bytes = rest + stages * group * x_bytes
    weight_stages = format_.ring_units // (1 if is_k else group)
    stage_bytes = (1 if is_k else group) * 2 * 4 * format_.unit_bytes
    most_stages = _FAR_STAGES if format_.has_exponents else weight_stages
    while weight_stages < most_stages and num_bytes + stage_bytes <= _SM_BYTES // fitting - format_.grid_bytes:
        weight_stages, num_bytes = weight_stages + 1, num_bytes + stage_bytes  # what x leaves
    return TileRing(blocks_per_sm, group, weight_stages, stages, num_bytes)


def _portable_ring(format_: Format, size: int) -> TileRing:
    """As many stages as fit, of x and weights together; of weights that are not quantised x alone."""
    stage_bytes = size * 128 + (8 * 32 * format_.lane_bytes if format_.is_scaled else 0)
    stages = min(_MAX_STAGES, (_PORTABLE_BYTES - format_.grid_bytes) // stage_bytes)
    return TileRing(1, 1, stages if format_.is_scaled else 0, stages, stage_bytes * stages)


@lru_cache
def ring_bytes(gpu: GpuSpec, format_: Format, size: int) -> int:
    """Shared memory of a block of `matmul_tiled_{size}`, beside the points of a grid."""
    return (_hopper_ring if gpu.has_wgmma else _portable_ring)(format_, size).num_bytes


declare_constants("matmul/matmul_weights.cuh", MAX_NORMED_WIDTH=MAX_NORMED_WIDTH)
declare_constants("matmul/matmul_streamed.cuh", STREAMED_SCALE_BYTES=STREAMED_SCALE_BYTES)
declare_constants("matmul/matmul_gemv_summed.cuh", MAX_SUMMED_WARPS=MAX_SUMMED_WARPS)
declare_constants("matmul/matmul_tiled.cuh", SUMMING_TOKENS=MOST_SUMMED)
declare_traits(
    "matmul/matmul_tiled_hopper.cuh",
    "TileRing",
    {(name, size): _hopper_ring(format_, size)._asdict() for name, format_ in FORMATS.items() for size in ROUTED_SIZES},
)
declare_traits(
    "matmul/matmul_tiled_portable.cuh",
    "TileRing",
    {
        (name, size): _portable_ring(format_, size)._asdict()
        for name, format_ in FORMATS.items()
        for size in SUMMING_SIZES
    },
)
