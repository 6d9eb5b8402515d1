"""All layers of a dense model and its head, for a few tokens in one kernel; see cuda/decode_layers/decode_layers.cu."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kernels.batch import LayerCache, Step, view
from kernels.ops.attention_plan import SWAPPED_ROWS
from kernels.ops.decode_layers.decode_layers_cut import Layer, LayersCut, Matrices, Model, fits_head, obstacle
from kernels.ops.decode_layers.decode_layers_params import (
    DECODE_WARPS,
    HEAD_DIM,
    LAYER_WARPS,
    LAYERS_BYTES,
    NO_HEAD,
    NUM_TOKENS,
    SOURCE,
    SPREADS,
    ClearParams,
    DecodeLayer,
    DecodeLayersParams,
    DecodeProduct,
    LayerCut,
    WordPlaces,
)
from kernels.ops.decode_layers.decode_layers_step import (
    FORMAT_NUMBERS,
    attention_params,
    embedding_params,
    empty_words,
    head_params,
    rope_params,
    rows_params,
)
from kernels.ops.decode_layers.streamed_layers import streamed_layers, streamed_layers_support
from kernels.ops.matmul import norm_head
from kernels.ops.rope import angle_params, cache_defines, cache_params, with_codes
from kernels.runtime.compiler import Variant
from kernels.runtime.device_array import DeviceArray, pointer_of
from kernels.runtime.launcher import Context
from kernels.weights.packed import PackedMatrix
from kernels.weights.parameters import LayersSupport

_DEFINES = {"HEAD_DIM": HEAD_DIM, "DECODE_WARPS": DECODE_WARPS, "ROPE_ROWS": SWAPPED_ROWS}


def variants() -> list[Variant]:
    """What of decode_layers.cu is compiled."""
    plain: list[Variant] = [(SOURCE, _defines(count)) for count in NUM_TOKENS]
    return [*plain, *with_codes(plain)]


def _defines(num_tokens: int) -> dict[str, int]:
    return {**_DEFINES, "TOKENS": num_tokens, **SPREADS[num_tokens]}


CONTEXTS = {1: 2048, 2: 2560, 4: 2560, 8: 1024}
"""Up to such contexts all layers of so many sequences are faster in one kernel than one by one: few blocks attend."""


def decode_layers_support(context: Context, model: Model) -> LayersSupport:
    """What `decode_layers` can do with ``model`` on the GPU. Its words are not for two streams at once."""
    found = obstacle(context.gpu, model)
    if found:
        other = streamed_layers_support(context, model)
        if not other.obstacle:
            return other
        return LayersSupport(found if other.obstacle == found else f"{found}; where layers are wide, {other.obstacle}")
    contexts = {count: CONTEXTS[count] for count in NUM_TOKENS if not obstacle(context.gpu, model, count)}
    if not fits_head(model.head, model.layers[0]):
        return LayersSupport(None, contexts)
    size = max(_num_words(model.layers, count) for count in contexts)
    return LayersSupport(None, contexts, empty_words(size))


def decode_layers(
    context: Context,
    model: Model,
    step: Step[DeviceArray],
    *,
    words: DeviceArray,
    out_caches: Sequence[LayerCache[DeviceArray]],
    out: DeviceArray,
) -> None:
    """Logits ``out`` [R, V] float32 of a step of T sequences with a token each.

    T is one of `NUM_TOKENS`. The same bits as by the ops of embedding, rotation, single layers and head. K and V go to
    ``step.slots`` of ``out_caches``. ``words`` are those of `decode_layers_support`; if there are none,
    ``step.greedy`` must not be set. The kernel launched just before must not use scratch memory that is free again: the
    first one here may overlap it.
    """
    if obstacle(context.gpu, model):
        streamed_layers(context, model, step, words=words, out_caches=out_caches, out=out)
        return
    layers, head = model.layers, model.head
    qkv, output, gate_up, down = Matrices.of(layers[0])
    num_tokens = step.token_ids.size
    has_head = step.logit_rows.size == num_tokens and fits_head(head, layers[0])
    cut = LayersCut.of(layers, num_tokens)
    assert has_head or step.greedy is None, "a draw from logits that are not there yet"
    places = _word_places(num_tokens, layers)
    defines = {**_defines(num_tokens), **cache_defines(out_caches[0])}
    if not has_head:  # then the kernel does not leave its words as they were
        words = context.scratch((_num_words(layers, num_tokens),), np.float32)
        num_quads = words.size // 4
        clear = ClearParams(words=words.pointer, num_quads=num_quads)
        context.launch(SOURCE, "decode_layers_clear", -(-num_quads // 256), 256, clear, **defines)
    params = DecodeLayersParams(
        attention=attention_params(layers[0].attention, out_caches[0], step),
        rope=rope_params(model.rope),
        angles=angle_params(model.rope),
        rows=rows_params(step),
        embedding=embedding_params(model),
        words=words.pointer,
        places=WordPlaces(**places),
        qkv=_product(qkv, 0),
        output=_product(output, 0),
        gate_up=_product(gate_up, cut.gate_at),
        down=_product(down, cut.down_at),
        cut=LayerCut(
            num_layers=len(layers),
            width=qkv.width,
            gate_tiles=cut.gate_tiles,
            qkv_block=cut.qkv_block,
            attention_block=cut.attention_block,
            scratch_at=cut.scratch_at,
            fragments_at=cut.fragments_at,
            epsilon=layers[0].ffn_norm.epsilon,
            inverse_width=1 / qkv.width,
        ),
        head=head_params(head, step, out) if has_head else NO_HEAD,
        layers=b"".join(map(_layer, layers, out_caches)).ljust(LAYERS_BYTES, b"\0"),
    )
    threads, shared_bytes = 32 * LAYER_WARPS, context.gpu.spread(cut.shared_bytes, 1)
    context.launch(SOURCE, "decode_layers", cut.num_blocks, threads, params, shared_bytes=shared_bytes, **defines)
    if not has_head:
        x = view(words, 4 * places["stream_at"], (num_tokens, qkv.width), np.float32)
        norm_head(context, x, step.logit_rows, head.norm, head.projection, out=out)


def _num_words(layers: Sequence[Layer], num_tokens: int) -> int:
    ranks = 2 * num_tokens * LayersCut.of(layers, num_tokens).attention_block
    return _word_places(num_tokens, layers)["ranks_at"] + -(-ranks // 4) * 4


def _word_places(num_tokens: int, layers: Sequence[Layer]) -> dict[str, int]:
    """The fields of `WordPlaces`. A word is a float32 or two float16."""
    qkv, output, _, down = Matrices.of(layers[0])
    spreads, attended_words, activated_words = SPREADS[num_tokens], output.width // 2, down.width // 2
    qkv_words = qkv.num_rows // 2 * spreads["QKV_SPREAD"]
    middle_words, end_words = qkv.width * spreads["MIDDLE_SPREAD"], qkv.width * spreads["END_SPREAD"]
    first_layer = num_tokens * end_words
    middle_at = num_tokens * (qkv_words + attended_words)
    activated_at = middle_at + num_tokens * middle_words
    end_at = activated_at + num_tokens * activated_words
    layer_words = end_at + num_tokens * end_words
    stream_at = first_layer + len(layers) * layer_words
    return {
        "first_layer": first_layer,
        "layer_words": layer_words,
        "qkv_words": qkv_words,
        "attended_words": attended_words,
        "activated_words": activated_words,
        "middle_words": middle_words,
        "end_words": end_words,
        "attended_at": num_tokens * qkv_words,
        "middle_at": middle_at,
        "activated_at": activated_at,
        "end_at": end_at,
        "stream_at": stream_at,
        "ranks_at": stream_at + num_tokens * qkv.width,
    }


def _product(matrix: PackedMatrix, buffer_at: int) -> DecodeProduct:
    return DecodeProduct(
        num_tiles=matrix.num_tiles,
        num_chunks=matrix.num_chunks,
        num_partitions=matrix.num_partitions,
        reciprocal=-(-(1 << 16) // matrix.num_partitions),
        buffer_at=buffer_at,
    )


def _layer(layer: Layer, cache: LayerCache[DeviceArray]) -> DecodeLayer:
    qkv, output, gate_up, down = Matrices.of(layer)
    return DecodeLayer(
        qkv=qkv.packed.pointer,
        output=output.packed.pointer,
        gate_up=gate_up.packed.pointer,
        down=down.packed.pointer,
        qkv_bias=pointer_of(qkv.bias),
        attention_norm=layer.attention_norm.weight.pointer,
        ffn_norm=layer.ffn_norm.weight.pointer,
        cache=cache_params(cache),
        qkv_format=FORMAT_NUMBERS[qkv.format.name],
        output_format=FORMAT_NUMBERS[output.format.name],
        gate_up_format=FORMAT_NUMBERS[gate_up.format.name],
        down_format=FORMAT_NUMBERS[down.format.name],
    )
