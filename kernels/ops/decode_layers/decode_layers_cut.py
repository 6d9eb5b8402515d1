"""Which layers `kernels.ops.decode_layers` is for, and how their work is shared out among the blocks of its kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import msgspec

from kernels.ops.attention_plan import SWAPPED_ROWS, query_bytes, tile_bytes
from kernels.ops.decode_layers.decode_layers_params import (
    BLOCK_FORMATS,
    BLOCK_SPLITS,
    DECODE_WARPS,
    DOWN_FORMATS,
    DOWN_LIMIT,
    DOWN_SUMS,
    GATE_LIMIT,
    GATE_SUMS,
    HEAD_DIM,
    HEAD_FORMAT,
    HEAD_UNITS,
    LAYER_WARPS,
    MAX_GATE_TILES,
    MAX_INTERMEDIATE,
    MAX_LAYERS,
    MAX_WIDTH,
    NORM_WIDTH,
    NUM_TOKENS,
    TILE_LIMIT,
    TILE_SUMS,
    Limit,
)
from kernels.ops.norm import NORM_PARTITIONS
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import GpuSpec
from kernels.weights.formats import CHUNK, FORMATS
from kernels.weights.packed import PackedMatrix, Projection
from kernels.weights.parameters import DenseLayer, DenseModel, OutputHead

Layer = DenseLayer[DeviceArray, Projection]
Head = OutputHead[DeviceArray, Projection]
Model = DenseModel[DeviceArray, PackedMatrix, Projection]
_ALIGNMENT = 128


def obstacle(gpu: GpuSpec, model: Model, num_tokens: int = 1) -> str | None:
    """What keeps `decode_layers` from so many tokens of such a ``model`` on that GPU; None: nothing.

    All its blocks run at once there.
    """
    layers, table = model.layers, model.embedding.table
    if not gpu.has_wgmma:
        return f"it is for Hopper (sm_90a), and this GPU is {gpu.arch}"
    if not 0 < len(layers) <= MAX_LAYERS:
        return f"it is for at most {MAX_LAYERS} layers, and these are {len(layers)}"
    if found := next(filter(None, map(_layer_obstacle, layers)), None):
        return found
    if table.format.name not in BLOCK_FORMATS:
        return f"it does not unpack embeddings of {table.format.name}"
    first, *others = map(_shape, layers)
    if any(shape != first for shape in others):
        return "it is for layers of one shape"
    if not _fits_warps(Matrices.of(layers[0])):
        return "its blocks cannot share out matrices of these widths"
    if num_tokens not in NUM_TOKENS:
        return f"it is for {', '.join(map(str, NUM_TOKENS))} tokens, and these are {num_tokens}"
    cut = LayersCut.of(layers, num_tokens)
    if cut.num_blocks > gpu.num_sms:
        return f"its {cut.num_blocks} blocks must run at once, and this GPU has {gpu.num_sms} SMs"
    if cut.shared_bytes > gpu.shared_bytes:
        return f"its blocks need {cut.shared_bytes} bytes of shared memory, and this GPU has {gpu.shared_bytes}"
    return None


class Matrices(NamedTuple):
    """The matrices of a layer, of projections that have one each."""

    qkv: PackedMatrix
    output: PackedMatrix
    gate_up: PackedMatrix
    down: PackedMatrix

    @classmethod
    def of(cls, layer: Layer) -> Matrices:
        """The first matrices of the projections of ``layer``."""
        return cls(*(each.matrices[0] for each in (layer.qkv, layer.output, layer.gate_up, layer.down)))


def fits_head(head: Head, layer: Layer) -> bool:
    """Whether the kernel for layers like ``layer`` can go on with this head."""
    matrix, *others = head.projection.matrices
    return (
        not others
        and matrix.format.name == HEAD_FORMAT
        and matrix.num_partitions == 1
        and matrix.num_chunks >= HEAD_UNITS
        and matrix.bias is None
        and matrix.width == Matrices.of(layer).qkv.width
        and head.norm.epsilon == layer.ffn_norm.epsilon
    )


def _layer_obstacle(layer: Layer) -> str | None:
    """What of the layer the kernel does not know, or which of its formats."""
    attention = layer.attention
    if attention.head_dim != HEAD_DIM:
        return f"it is for heads of {HEAD_DIM}, and these have {attention.head_dim}"
    if attention.num_heads // attention.num_kv_heads > SWAPPED_ROWS:
        return f"it is for at most {SWAPPED_ROWS} query heads to one of keys and values"
    if attention.window or attention.softcap or attention.shares_cache or attention.sinks is not None:
        return "its attention has no window, soft cap, sinks or shared cache"
    if attention.head_norms is not None or attention.value_norm is not None:
        return "its attention has no norms of heads"
    if any(len(each.matrices) != 1 for each in (layer.qkv, layer.output, layer.gate_up, layer.down)):
        return "it is for projections of one tensor type each"
    qkv, output, gate_up, down = Matrices.of(layer)
    known = (qkv, BLOCK_FORMATS), (output, BLOCK_FORMATS), (gate_up, BLOCK_FORMATS), (down, DOWN_FORMATS)
    if unknown := {matrix.format.name for matrix, formats in known if matrix.format.name not in formats}:
        return f"it does not unpack {', '.join(sorted(unknown))} where these layers have it"
    if not gate_up.gated or any(matrix.bias is not None for matrix in (output, gate_up, down)):
        return "it is for SwiGLU, and for biases of Q, K and V only"
    return None


def _shape(layer: Layer) -> tuple[object, ...]:
    """What must be the same in all layers."""
    attention = layer.attention
    matrices = [(matrix.num_rows, matrix.width, _starts(matrix)) for matrix in Matrices.of(layer)]
    heads = attention.num_heads, attention.num_kv_heads, attention.scale
    return *matrices, heads, layer.attention_norm.epsilon == layer.ffn_norm.epsilon, layer.ffn_norm.epsilon


def _starts(matrix: PackedMatrix) -> tuple[int, ...]:
    """The first chunk of each partition, and the end."""
    units, partitions = matrix.num_units, matrix.num_partitions
    return tuple(partition * units // partitions * matrix.format.unit_chunks for partition in range(partitions + 1))


def _fits_warps(matrices: Matrices) -> bool:
    """Whether the warps of blocks can take the partitions, and columns and rows are whole ones."""
    qkv, output, gate_up, down = matrices
    gate_tiles = _gate_tiles(gate_up)
    limits = TILE_LIMIT, TILE_LIMIT, GATE_LIMIT, DOWN_LIMIT
    return (
        qkv.width % NORM_WIDTH == 0
        and qkv.width <= NORM_PARTITIONS * NORM_WIDTH
        and max(qkv.width, output.width) <= MAX_WIDTH
        and down.width <= MAX_INTERMEDIATE
        and all(_fits_limit(matrix, limit) for matrix, limit in zip(matrices, limits, strict=True))
        and len(set(_lengths(down))) == 1
        # Whoever has a partition of output, or rows of it or of down, has gates, too:
        and gate_tiles * gate_up.num_partitions == LAYER_WARPS - 1
        and gate_up.num_tiles // gate_tiles >= max(output.num_tiles, 2 * down.num_tiles)
    )


def _lengths(matrix: PackedMatrix) -> Iterator[int]:
    """Chunks of each partition."""
    return (end - start for start, end in pairwise(_starts(matrix)))


def _fits_limit(matrix: PackedMatrix, limit: Limit) -> bool:
    chunks, partitions = matrix.num_chunks, matrix.num_partitions
    return (
        matrix.num_rows % 16 == 0
        and matrix.width % CHUNK == 0
        and partitions <= limit.partitions
        and max(_lengths(matrix)) <= limit.chunks
        # As the kernel cuts, whatever the units of a format:
        and _starts(matrix) == tuple(partition * chunks // partitions for partition in range(partitions + 1))
    )


class LayersCut(msgspec.Struct, frozen=True):
    """Who does what, and where in a block's shared memory what lies."""

    gate_tiles: int
    qkv_block: int
    attention_block: int
    num_blocks: int
    gate_at: int
    down_at: int
    scratch_at: int
    fragments_at: int
    shared_bytes: int

    @classmethod
    def of(cls, layers: Sequence[Layer], num_tokens: int = 1) -> LayersCut:
        """How the work on such ``layers`` is cut, for so many tokens at once."""
        qkv, output, gate_up, down = Matrices.of(layers[0])
        gate_tiles = _gate_tiles(gate_up)
        # The first blocks have output's tiles, the last ones those of Q, K and V: no block has both, unless there are
        # so many tokens that attention needs the blocks. All have gates, and down projections in halves of a tile.
        gate_blocks = -(-gate_up.num_tiles // gate_tiles)
        attention_block = max(gate_blocks, 2 * down.num_tiles, output.num_tiles, qkv.num_tiles)
        if num_tokens < 4 or qkv.num_partitions != output.num_partitions:
            attention_block = max(attention_block, output.num_tiles + qkv.num_tiles)
        tiles = [[_tile_bytes(matrix) for matrix in Matrices.of(layer)] for layer in layers]
        qkv_bytes, output_bytes, gate_bytes, down_bytes = map(max, zip(*tiles, strict=True))
        gate_at = _aligned(max(qkv_bytes, output_bytes))
        down_at = gate_at + _aligned(gate_tiles * gate_bytes)
        # The output head's weights take the place of all these, and have barriers.
        head_bytes = (LAYER_WARPS - 1) * HEAD_UNITS * (FORMATS[HEAD_FORMAT].unit_bytes + 8)
        scratch_at = _aligned(max(down_at + down_bytes, head_bytes))
        fragments_at = scratch_at + _aligned(_scratch_bytes(num_tokens))
        fragments_bytes = 0 if num_tokens > 4 else -(-down.num_partitions // 2) * DOWN_LIMIT.chunks * 2048
        return cls(
            gate_tiles,
            attention_block - qkv.num_tiles,
            attention_block,
            attention_block + layers[0].attention.num_kv_heads * min(num_tokens, 4),
            gate_at,
            down_at,
            scratch_at,
            fragments_at,
            max(fragments_at + fragments_bytes, _ATTENTION_BYTES),
        )


def _gate_tiles(gate_up: PackedMatrix) -> int:
    return min(MAX_GATE_TILES, (LAYER_WARPS - 1) // gate_up.num_partitions)


def _tile_bytes(matrix: PackedMatrix) -> int:
    return matrix.num_units * matrix.format.unit_bytes


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


# `ProductScratch` and `AttentionScratch`, with some bytes more for what aligns their fields.
def _scratch_bytes(num_tokens: int) -> int:
    tile_sums, shares_x = (8, True) if num_tokens > 2 else (TILE_SUMS, False)
    sums = NORM_PARTITIONS + 8 + 16 * tile_sums + MAX_GATE_TILES * 16 * GATE_SUMS + 8 * DOWN_SUMS
    down_tokens = min(num_tokens, 4)
    activated = DOWN_SUMS // 2 * 2 * down_tokens * (DOWN_LIMIT.chunks // down_tokens * CHUNK + 8)
    x = num_tokens * (MAX_WIDTH + (8 if num_tokens > 1 else 0))
    columns = max(x, activated) if shares_x else x + activated
    return 8 * 8 + num_tokens * sums * 4 + columns * 2 + _ALIGNMENT


_ATTENTION_BYTES = (
    BLOCK_SPLITS * DECODE_WARPS * (2 * tile_bytes(HEAD_DIM, 2) + SWAPPED_ROWS * (HEAD_DIM + 8 + 2) * 4)
    + (SWAPPED_ROWS + 2) * query_bytes(HEAD_DIM) + DECODE_WARPS * 32 * 48
    + BLOCK_SPLITS * (HEAD_DIM + 1) * 4 + _ALIGNMENT
)  # fmt: skip
