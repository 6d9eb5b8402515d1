"""All layers of a wide dense model and its head for one token in one kernel.

See cuda/decode_layers/streamed_layers.cu.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernels.batch import LayerCache, Step
from kernels.ops.attention_plan import SWAPPED_ROWS
from kernels.ops.decode_layers.decode_layers_cut import Layer, Matrices, Model
from kernels.ops.decode_layers.decode_layers_step import (
    FORMAT_NUMBERS,
    attention_params,
    embedding_params,
    empty_words,
    head_params,
    rope_params,
    rows_params,
)
from kernels.ops.decode_layers.streamed_layers_cut import StreamedLayersCut, obstacle
from kernels.ops.decode_layers.streamed_layers_params import (
    DECODE_WARPS,
    HEAD_DIMS,
    LAYERS_BYTES,
    SOURCE,
    WARPS,
    StreamedCut,
    StreamedLayer,
    StreamedLayersParams,
    StreamedPlaces,
    StreamedProduct,
)
from kernels.ops.rope import angle_params, cache_defines, cache_params, with_codes
from kernels.runtime.compiler import Variant
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context
from kernels.weights.parameters import LayersSupport


def variants() -> list[Variant]:
    """What of streamed_layers.cu is compiled."""
    plain: list[Variant] = [(SOURCE, _defines(head_dim)) for head_dim in HEAD_DIMS]
    return [*plain, *with_codes(plain)]


CONTEXT = 768
"""Up to such a context it is faster than layers one by one: a block attends to `ROUND_TILES` tiles at a time."""


def streamed_layers_support(context: Context, model: Model) -> LayersSupport:
    """What `streamed_layers` can do with ``model`` on the GPU. Its words are not for two streams at once."""
    if found := obstacle(context.gpu, model, CONTEXT):
        return LayersSupport(found)
    return LayersSupport(None, {1: CONTEXT}, empty_words(StreamedLayersCut.of(context.gpu, model).num_words))


def _defines(head_dim: int) -> dict[str, int]:
    return {"HEAD_DIM": head_dim, "DECODE_WARPS": DECODE_WARPS, "ROPE_ROWS": SWAPPED_ROWS}


def streamed_layers(
    context: Context,
    model: Model,
    step: Step[DeviceArray],
    *,
    words: DeviceArray,
    out_caches: Sequence[LayerCache[DeviceArray]],
    out: DeviceArray,
) -> None:
    """Logits ``out`` [1, V] float32, or [0, V] if nobody wants them, of a step of one token.

    The same bits as by the ops of embedding, rotation, single layers and head. K and V go to ``step.slots`` of
    ``out_caches``. ``words`` are those of `streamed_layers_support`.
    """
    layers, head = model.layers, model.head
    cut = StreamedLayersCut.of(context.gpu, model)
    first, width = layers[0], head.norm.weight.size
    (head_matrix,) = head.projection.matrices
    if not out.shape[0]:  # nobody wants the logits
        out = context.scratch((1, head_matrix.num_rows), np.float32)
    params = StreamedLayersParams(
        attention=attention_params(first.attention, out_caches[0], step),
        rope=rope_params(model.rope),
        angles=angle_params(model.rope),
        rows=rows_params(step),
        embedding=embedding_params(model),
        words=words.pointer,
        places=StreamedPlaces(**cut.places),
        products=b"".join(StreamedProduct(**product) for product in cut.products),
        cut=StreamedCut(
            num_layers=len(layers),
            width=width,
            output_width=first.output.matrices[0].width,
            intermediate=first.down.matrices[0].width,
            attention_block=cut.attention_block,
            head_format=FORMAT_NUMBERS[head_matrix.format.name],
            epsilon=head.norm.epsilon,
            inverse_width=1 / width,
        ),
        head=head_params(head, step, out),
        layers=b"".join(map(_layer, layers, out_caches)).ljust(LAYERS_BYTES, b"\0"),
    )
    defines = {**_defines(first.attention.head_dim), **cache_defines(out_caches[0])}
    shared_bytes = context.gpu.spread(cut.shared_bytes, 1)
    context.launch(SOURCE, "streamed_layers", cut.num_blocks, 32 * WARPS, params, shared_bytes=shared_bytes, **defines)


def _layer(layer: Layer, cache: LayerCache[DeviceArray]) -> StreamedLayer:
    matrices = Matrices.of(layer)
    return StreamedLayer(
        packed=b"".join(matrix.packed.pointer.to_bytes(8, "little") for matrix in matrices),
        norms=b"".join(norm.weight.pointer.to_bytes(8, "little") for norm in (layer.attention_norm, layer.ffn_norm)),
        cache=cache_params(cache),
        formats=b"".join(FORMAT_NUMBERS[matrix.format.name].to_bytes(4, "little") for matrix in matrices),
    )
