"""Structs that kernels/cuda/decode_layers is given, and what its blocks can take."""

from __future__ import annotations

from typing import Annotated, NamedTuple

from kernels.ops.attention_parts.attention_params import AttentionParams
from kernels.ops.rope import AngleParams, LayerCacheParams, RopeParams
from kernels.runtime.cuda_constants import declare_constants
from kernels.runtime.cuda_struct import CudaStruct, FieldType, Float32, Int32, Pointer, UInt32
from kernels.weights.formats import CHUNK


class Limit(NamedTuple):
    """What of a product a block can take: split-K partitions of a tile, and chunks of each, which a warp unpacks."""

    partitions: int
    chunks: int


NUM_TOKENS = (1, 2, 4, 8)  # each of a sequence of its own
SPREADS = {
    1: {"QKV_SPREAD": 1, "MIDDLE_SPREAD": 4, "END_SPREAD": 4},
    2: {"QKV_SPREAD": 1, "MIDDLE_SPREAD": 4, "END_SPREAD": 1},
    4: {"QKV_SPREAD": 1, "MIDDLE_SPREAD": 1, "END_SPREAD": 1},
    8: {"QKV_SPREAD": 4, "MIDDLE_SPREAD": 1, "END_SPREAD": 1},
}  # how many sectors of the L2 cache one of words lies from the next, by the number of tokens
MAX_LAYERS = 32
LAYER_WARPS = 16  # of a block
HEAD_DIM = 64
DECODE_WARPS = 4  # each has a tile of a KV split
BLOCK_SPLITS = 2  # at a time of a block that attends
TILE_LIMIT, GATE_LIMIT, DOWN_LIMIT = Limit(7, 2), Limit(4, 5), Limit(20, 4)
MAX_GATE_TILES = 5  # of a block
BLOCK_FORMATS = ("Q5_0", "Q8_0")
DOWN_FORMATS = (*BLOCK_FORMATS, "Q4_K", "Q6_K")
MAX_WIDTH = TILE_LIMIT.partitions * TILE_LIMIT.chunks * CHUNK
MAX_INTERMEDIATE = DOWN_LIMIT.partitions * DOWN_LIMIT.chunks * CHUNK
HEAD_FORMAT = "Q8_0"
HEAD_UNITS = 7  # of the output head that are under way for a warp
NORM_WIDTH = 128  # columns of a row's partition, if it has one quad a lane
# Floats of a row's partial sums: an odd number of fours, of which GATE's are one.
TILE_SUMS, GATE_SUMS, DOWN_SUMS = 12, 4, 20

SOURCE = "decode_layers/decode_layers"

declare_constants(
    "decode_layers/decode_layers.cuh",
    LAYER_WARPS=LAYER_WARPS,
    BLOCK_SPLITS=BLOCK_SPLITS,
    MAX_LAYERS=MAX_LAYERS,
    MAX_WIDTH=MAX_WIDTH,
    MAX_INTERMEDIATE=MAX_INTERMEDIATE,
    NORM_WIDTH=NORM_WIDTH,
    MAX_GATE_TILES=MAX_GATE_TILES,
    TILE_CHUNKS=TILE_LIMIT.chunks,
    GATE_CHUNKS=GATE_LIMIT.chunks,
    DOWN_CHUNKS=DOWN_LIMIT.chunks,
    TILE_SUMS=TILE_SUMS,
    GATE_SUMS=GATE_SUMS,
    DOWN_SUMS=DOWN_SUMS,
    HEAD_UNITS=HEAD_UNITS,
)


class DecodeLayer(CudaStruct, source=SOURCE):
    """The weights and the cache of a layer."""

    qkv: Pointer  # packed, as are the next three
    output: Pointer
    gate_up: Pointer
    down: Pointer
    qkv_bias: Pointer  # [rows of qkv] float32 or null
    attention_norm: Pointer  # [width] float32
    ffn_norm: Pointer  # [width] float32
    cache: LayerCacheParams
    qkv_format: Int32
    output_format: Int32
    gate_up_format: Int32
    down_format: Int32


class DecodeProduct(CudaStruct, source=SOURCE):
    """How a product is cut, in every layer."""

    num_tiles: Int32
    num_chunks: Int32
    num_partitions: Int32
    reciprocal: Int32  # ceil(2^16 / num_partitions)
    buffer_at: Int32  # where in shared memory a block has its weights


class LayerCut(CudaStruct, source=SOURCE):
    """Which block does what."""

    num_layers: Int32
    width: Int32
    gate_tiles: Int32  # of a block
    qkv_block: Int32  # the first block with a tile of Q, K and V
    attention_block: Int32  # the first with a KV head
    scratch_at: Int32  # in shared memory
    fragments_at: Int32
    epsilon: Float32
    inverse_width: Float32


class LayersHead(CudaStruct, source=SOURCE):
    """The output head, or none: then its pointers are null."""

    packed: Pointer
    norm: Pointer  # [width] float32
    rows: Pointer  # [T] int32
    logits: Pointer  # [T, num_rows] float32
    ids: Pointer  # [T] int32 or null
    host_ids: Pointer  # [T] int32 or null
    num_tiles: Int32
    num_chunks: Int32
    num_rows: Int32


NO_HEAD = LayersHead(packed=0, norm=0, rows=0, logits=0, ids=0, host_ids=0, num_tiles=0, num_chunks=0, num_rows=0)


class LayersRows(CudaStruct, source=SOURCE):
    """The tokens' rows."""

    token_ids: Pointer  # [T] int32, as the next ones
    positions: Pointer
    slots: Pointer
    context_lengths: Pointer
    sequence_lengths: Pointer
    output_positions: Pointer  # [T] int64 or null


class LayersEmbedding(CudaStruct, source=SOURCE):
    """What the first layer's residual stream is made of."""

    packed: Pointer
    format: Int32
    num_rows: Int32
    num_units: Int32
    scale: Float32


class WordPlaces(CudaStruct, source=SOURCE):
    """Where words are in those of a layer, and how many each token has."""

    first_layer: UInt32
    layer_words: UInt32
    qkv_words: UInt32
    attended_words: UInt32
    activated_words: UInt32
    middle_words: UInt32
    end_words: UInt32
    attended_at: UInt32
    middle_at: UInt32
    activated_at: UInt32
    end_at: UInt32
    stream_at: UInt32
    ranks_at: UInt32


LAYERS_BYTES = MAX_LAYERS * DecodeLayer.layout.num_bytes


class DecodeLayersParams(CudaStruct, source=SOURCE):
    """What decode_layers is given."""

    attention: AttentionParams
    rope: RopeParams
    angles: AngleParams
    rows: LayersRows
    embedding: LayersEmbedding
    words: Pointer  # uint32
    places: WordPlaces
    qkv: DecodeProduct
    output: DecodeProduct
    gate_up: DecodeProduct
    down: DecodeProduct
    cut: LayerCut
    head: LayersHead
    layers: Annotated[bytes, FieldType(f"{LAYERS_BYTES}s", LAYERS_BYTES, 8, "")]  # [MAX_LAYERS] DecodeLayer


class ClearParams(CudaStruct, source=SOURCE):
    """What decode_layers_clear is given."""

    words: Pointer  # [num_quads, 4] uint32
    num_quads: Int32
