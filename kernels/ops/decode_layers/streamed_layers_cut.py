"""Which models `streamed_layers` is for, and how their work is shared out among the blocks of its kernel."""

from __future__ import annotations

from typing import NamedTuple

from kernels.ops.attention_plan import SWAPPED_ROWS, query_bytes, tile_bytes
from kernels.ops.decode_layers.decode_layers_cut import Layer, Matrices, Model
from kernels.ops.decode_layers.streamed_layers_params import (
    DECODE_WARPS,
    FIXED_BYTES,
    FORMATS,
    HEAD_DIMS,
    MAX_INPUTS,
    MAX_LAYERS,
    MAX_PARTITIONS,
    MAX_SUMS,
    MAX_TILES,
    PRODUCTS,
    RING_UNITS,
    ROUND_TILES,
    WARPS,
    WIDTH,
)
from kernels.runtime.gpu_spec import GpuSpec
from kernels.weights.formats import FORMATS as ALL_FORMATS
from kernels.weights.packed import PackedMatrix


class StreamedLayersCut(NamedTuple):
    """Who does what, and where in a block's shared memory and in the words what lies."""

    num_blocks: int
    attention_block: int
    products: tuple[dict[str, int], ...]  # the fields of `StreamedProduct`
    places: dict[str, int]  # the fields of `StreamedPlaces`
    num_words: int
    shared_bytes: int

    @classmethod
    def of(cls, gpu: GpuSpec, model: Model) -> StreamedLayersCut:
        """How the work on ``model`` is cut."""
        num_blocks, attention = gpu.num_sms, model.layers[0].attention
        attention_block = num_blocks - attention.num_kv_heads
        matrices = Matrices.of(model.layers[0])
        (head,) = model.head.projection.matrices
        ends = num_blocks, attention_block, num_blocks, num_blocks
        products, sums_at = [], 0
        for name, matrix, end_block in zip(PRODUCTS, matrices, ends, strict=True):
            product = _product(matrix, attention_block, end_block, sums_at, spares=name == "qkv")
            products.append(product)
            sums_at += product["big_tiles"] * 16 * product["row_floats"]
        products.append(_product(head, attention_block, num_blocks, 0))
        places = _places(matrices, len(model.layers))
        return cls(
            num_blocks,
            attention_block,
            tuple(products),
            places,
            -(-(places["ranks_at"] + 2 * num_blocks) // 4) * 4,
            _shared_bytes(attention.head_dim, products[0]),
        )


def _product(
    matrix: PackedMatrix, attention_block: int, end_block: int, sums_at: int, *, spares: bool = False
) -> dict[str, int]:
    """Blocks that attend have fewer tiles where others have more; with ``spares`` as few as they can."""
    most = -(-matrix.num_tiles // end_block)
    big_blocks = matrix.num_tiles // most if spares else matrix.num_tiles - end_block * (most - 1)
    return {
        "num_tiles": matrix.num_tiles,
        "num_units": matrix.num_units,
        "num_partitions": matrix.num_partitions,
        "big_blocks": min(attention_block, big_blocks),
        "big_tiles": most,
        "end_block": end_block,
        "sums_at": sums_at,
        "row_floats": (-(-matrix.num_partitions // 4) | 1) * 4,
    }


def _places(matrices: Matrices, num_layers: int) -> dict[str, int]:
    width = matrices.qkv.width
    attended_at = matrices.qkv.num_rows // 2
    middle_at = attended_at + matrices.output.width // 2
    activated_at = middle_at + width
    end_at = activated_at + matrices.down.width // 2
    layer_words = end_at + width
    return {
        "first_layer": width,
        "layer_words": layer_words,
        "attended_at": attended_at,
        "middle_at": middle_at,
        "activated_at": activated_at,
        "end_at": end_at,
        "ranks_at": width + num_layers * layer_words,
    }


def _shared_bytes(head_dim: int, qkv: dict[str, int]) -> int:
    """`BlockScratch`: attention has the place of what output and down projections multiply, and of the ring.

    Behind it are units of Q, K and V, one for each warp that has some.
    """
    unit = max(ALL_FORMATS[name].unit_bytes for name in FORMATS)
    exchange = -(-ROUND_TILES // DECODE_WARPS) * DECODE_WARPS * SWAPPED_ROWS * (head_dim + 4 + 2) * 4
    tile, new_rows = 2 * tile_bytes(head_dim, 2), (SWAPPED_ROWS + 2) * query_bytes(head_dim)
    blocks, rest = qkv["end_block"] - qkv["big_blocks"], qkv["num_tiles"] - qkv["big_blocks"] * qkv["big_tiles"]
    units = -(-rest // blocks) * qkv["num_partitions"] if blocks else 0
    attention = (ROUND_TILES - 1) * tile + exchange + new_rows + max(tile, units * unit)
    return FIXED_BYTES + -(-max(MAX_INPUTS * 2 + WARPS * RING_UNITS * unit, attention) // 128) * 128


def obstacle(gpu: GpuSpec, model: Model, context: int) -> str | None:
    """What keeps `streamed_layers` from a token of such a ``model`` on that GPU, in contexts up to ``context``."""
    layers = model.layers
    if not gpu.has_wgmma:
        return f"it is for Hopper (sm_90a), and this GPU is {gpu.arch}"
    if not 0 < len(layers) <= MAX_LAYERS:
        return f"it is for at most {MAX_LAYERS} layers, and these are {len(layers)}"
    if found := next(filter(None, (_layer_obstacle(layer, context) for layer in layers)), None):
        return found
    if len({_shape(layer) for layer in layers}) > 1:
        return "it is for layers of one shape"
    if found := _ends_obstacle(model):
        return found
    if not gpu.num_sms > layers[0].attention.num_kv_heads:
        return f"it needs more than {layers[0].attention.num_kv_heads} SMs, and this GPU has {gpu.num_sms}"
    cut = StreamedLayersCut.of(gpu, model)
    if cut.shared_bytes > gpu.shared_bytes:
        return f"its blocks need {cut.shared_bytes} bytes of shared memory, and this GPU has {gpu.shared_bytes}"
    if not _fits_blocks(cut):
        return f"{gpu.num_sms} blocks cannot share out matrices of these sizes"
    return None


def _layer_obstacle(layer: Layer, context: int) -> str | None:
    """What of the layer the kernel does not know, or which of its formats."""
    attention = layer.attention
    if attention.head_dim not in HEAD_DIMS:
        return f"it is for heads of {', '.join(map(str, HEAD_DIMS))}, and these have {attention.head_dim}"
    if attention.num_heads // attention.num_kv_heads > SWAPPED_ROWS:
        return f"it is for at most {SWAPPED_ROWS} query heads to one of keys and values"
    if 0 < attention.window < context:
        return f"its attention has no window of {attention.window}"
    if attention.softcap or attention.shares_cache or attention.sinks is not None:
        return "its attention has no soft cap, sinks or shared cache"
    if attention.head_norms is not None or attention.value_norm is not None:
        return "its attention has no norms of heads"
    if any(len(each.matrices) != 1 for each in (layer.qkv, layer.output, layer.gate_up, layer.down)):
        return "it is for projections of one tensor type each"
    matrices = Matrices.of(layer)
    if unknown := {matrix.format.name for matrix in matrices} - {*FORMATS}:
        return f"it does not unpack {', '.join(sorted(unknown))}"
    if not matrices.gate_up.gated or any(matrix.bias is not None for matrix in matrices):
        return "it is for SwiGLU, without biases"
    if matrices.qkv.width != WIDTH or max(matrix.width for matrix in matrices) > MAX_INPUTS:
        return f"it is for a residual stream of {WIDTH} and for at most {MAX_INPUTS} inputs"
    return None


def _shape(layer: Layer) -> tuple[object, ...]:
    """What must be the same in all layers."""
    attention = layer.attention
    matrices = [(matrix.num_rows, matrix.width) for matrix in Matrices.of(layer)]
    epsilons = layer.attention_norm.epsilon, layer.ffn_norm.epsilon
    return *matrices, attention.num_heads, attention.num_kv_heads, attention.scale, *epsilons


def _ends_obstacle(model: Model) -> str | None:
    """What of embeddings and output head it does not know."""
    (head, *others), table = model.head.projection.matrices, model.embedding.table
    if unknown := {head.format.name, table.format.name} - {*FORMATS}:
        return f"it does not unpack embeddings or heads of {', '.join(sorted(unknown))}"
    if others or head.bias is not None or head.num_partitions != 1 or head.width != WIDTH:
        return "it is for an output head of one matrix, without bias"
    if {model.head.norm.epsilon, model.layers[0].attention_norm.epsilon, model.layers[0].ffn_norm.epsilon} != {
        model.head.norm.epsilon
    }:
        return "it is for norms with one epsilon"
    return None


def _fits_blocks(cut: StreamedLayersCut) -> bool:
    """Whether a block's warps have a partition or less of each of its tiles, and there is room for their sums."""
    products = cut.products[: len(PRODUCTS)]
    sums = products[-1]["sums_at"] + products[-1]["big_tiles"] * 16 * products[-1]["row_floats"]
    return (
        all(product["big_tiles"] * product["num_partitions"] <= WARPS for product in cut.products)
        and all(product["big_tiles"] <= MAX_TILES for product in products)
        and all(product["num_partitions"] <= MAX_PARTITIONS for product in products)
        and sums <= MAX_SUMS
    )
