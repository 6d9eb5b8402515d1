"""Structs that kernels/cuda/decode_layers/streamed_layers.cu is given, and what its blocks can take."""

from __future__ import annotations

from typing import Annotated

from kernels.ops.attention_parts.attention_params import AttentionParams
from kernels.ops.decode_layers.decode_layers_params import LayersEmbedding, LayersHead, LayersRows
from kernels.ops.rope import AngleParams, LayerCacheParams, RopeParams
from kernels.runtime.cuda_constants import declare_constants
from kernels.runtime.cuda_struct import CudaStruct, FieldType, Float32, Int32, Pointer, UInt32

SOURCE = "decode_layers/streamed_layers"

MAX_LAYERS = 32
WARPS = 16  # of a block; each has a partition of a tile
RING_UNITS = 3  # of weights that are under way for a warp
READY_CHUNKS = 2  # of a product that it unpacks ahead
MAX_TILES = 8  # of a block, whose partitions are added up
MAX_PARTITIONS = 8  # of these
MAX_SUMS = 1600  # floats of a block's sums
WIDTH, MAX_INPUTS = 3072, 8192  # of the residual stream; columns of other products
ROUND_TILES = 6  # of keys that a block attends to at a time
DECODE_WARPS = 4  # as many tiles are exchanged together
FIXED_BYTES = 25 << 10  # of a block's shared memory, beside the ring and what attention has in its place
HEAD_DIMS = (96,)
FORMATS = ("Q4_K", "Q5_K", "Q6_K")
PRODUCTS = ("qkv", "output", "gate_up", "down")  # of a layer

declare_constants(
    "decode_layers/streamed_layers.cuh",
    MAX_STREAMED_LAYERS=MAX_LAYERS,
    STREAM_WARPS=WARPS,
    RING_UNITS=RING_UNITS,
    READY_STREAM_CHUNKS=READY_CHUNKS,
    FIXED_STREAM_BYTES=FIXED_BYTES,
    MAX_BLOCK_TILES=MAX_TILES,
    MAX_STREAMED_PARTITIONS=MAX_PARTITIONS,
    MAX_STREAMED_SUMS=MAX_SUMS,
    MAX_STREAMED_WIDTH=WIDTH,
    MAX_STREAMED_INPUTS=MAX_INPUTS,
    ROUND_TILES=ROUND_TILES,
)


def _array(num_bytes: int, alignment: int) -> FieldType:
    return FieldType(f"{num_bytes}s", num_bytes, alignment, "")


_POINTERS, _NORMS, _FORMAT_NUMBERS = _array(8 * len(PRODUCTS), 8), _array(16, 8), _array(4 * len(PRODUCTS), 4)


class StreamedLayer(CudaStruct, source=SOURCE):
    """The weights and the cache of a layer."""

    packed: Annotated[bytes, _POINTERS]  # of `PRODUCTS`
    norms: Annotated[bytes, _NORMS]  # [width] float32 before Q, K and V, and before gates
    cache: LayerCacheParams
    formats: Annotated[bytes, _FORMAT_NUMBERS]


class StreamedProduct(CudaStruct, source=SOURCE):
    """How a product is cut, in every layer."""

    num_tiles: Int32
    num_units: Int32
    num_partitions: Int32
    big_blocks: Int32  # have `big_tiles` each, those up to `end_block` share the others
    big_tiles: Int32
    end_block: Int32
    sums_at: Int32
    row_floats: Int32


class StreamedPlaces(CudaStruct, source=SOURCE):
    """Where words are in those of a layer."""

    first_layer: UInt32
    layer_words: UInt32
    attended_at: UInt32
    middle_at: UInt32
    activated_at: UInt32
    end_at: UInt32
    ranks_at: UInt32


class StreamedCut(CudaStruct, source=SOURCE):
    """What is the same in all layers."""

    num_layers: Int32
    width: Int32
    output_width: Int32
    intermediate: Int32
    attention_block: Int32  # the first that attends
    head_format: Int32
    epsilon: Float32
    inverse_width: Float32


PRODUCTS_BYTES = (len(PRODUCTS) + 1) * StreamedProduct.layout.num_bytes
LAYERS_BYTES = MAX_LAYERS * StreamedLayer.layout.num_bytes
_PRODUCTS, _LAYERS = _array(PRODUCTS_BYTES, 4), _array(LAYERS_BYTES, 8)


class StreamedLayersParams(CudaStruct, source=SOURCE):
    """What streamed_layers is given."""

    attention: AttentionParams
    rope: RopeParams
    angles: AngleParams
    rows: LayersRows
    embedding: LayersEmbedding
    words: Pointer  # uint32
    places: StreamedPlaces
    products: Annotated[bytes, _PRODUCTS]  # of `PRODUCTS` and the head
    cut: StreamedCut
    head: LayersHead
    layers: Annotated[bytes, _LAYERS]  # [MAX_LAYERS] StreamedLayer
