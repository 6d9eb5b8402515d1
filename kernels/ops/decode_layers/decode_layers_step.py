"""What kernels of all layers of a dense model are given of a step, beside its layers."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kernels.batch import LayerCache, Step
from kernels.ops.attention import CODE_FACTOR
from kernels.ops.attention_parts.attention_params import AttentionParams, AttentionWork, ScoreParams
from kernels.ops.attention_parts.prefix_attention import NO_WORK
from kernels.ops.decode_layers.decode_layers_cut import Head, Model
from kernels.ops.decode_layers.decode_layers_params import LayersEmbedding, LayersHead, LayersRows
from kernels.ops.rope import RopeParams, cache_params
from kernels.runtime.device_array import DeviceArray, pointer_of
from kernels.weights.formats import FORMATS
from kernels.weights.parameters import Attention, Rope

FORMAT_NUMBERS = {name: number for number, name in enumerate(FORMATS)}
"""As kernels know formats."""


def empty_words(count: int) -> NDArray[np.float32]:
    """So many words that nobody has published."""
    return np.full(count, -1, np.int32).view(np.float32)


def rope_params(rope: Rope[DeviceArray]) -> RopeParams:
    """The rotation, whose angles the kernel finds itself."""
    num_pairs = rope.inverse_frequencies.shape[1]
    assert num_pairs % 2 == 0, f"{num_pairs} pairs: lanes take two at a time"
    return RopeParams(
        cosine=0,
        sine=0,
        query_factors=0,
        query_norm=0,
        key_norm=0,
        num_pairs=num_pairs,
        neox=rope.pairing == "neox",
        query_epsilon=0.0,
        key_epsilon=0.0,
    )


def rows_params(step: Step[DeviceArray]) -> LayersRows:
    """The tokens' rows."""
    return LayersRows(
        token_ids=step.token_ids.pointer,
        positions=step.positions.pointer,
        slots=step.slots.pointer,
        context_lengths=step.context_lengths.pointer,
        sequence_lengths=step.sequence_lengths.pointer,
        output_positions=pointer_of(step.greedy.output_positions if step.greedy else None),
    )


def embedding_params(model: Model) -> LayersEmbedding:
    """The table of embeddings."""
    table = model.embedding.table
    return LayersEmbedding(
        packed=table.packed.pointer,
        format=FORMAT_NUMBERS[table.format.name],
        num_rows=table.num_rows,
        num_units=table.num_units,
        scale=model.embedding.scale,
    )


def head_params(head: Head, step: Step[DeviceArray], logits: DeviceArray) -> LayersHead:
    """The output head and what it leaves."""
    (matrix,) = head.projection.matrices
    ids, host_ids, _ = step.greedy or (None, None, None)
    return LayersHead(
        packed=matrix.packed.pointer,
        norm=head.norm.weight.pointer,
        rows=step.logit_rows.pointer,
        logits=logits.pointer,
        ids=pointer_of(ids),
        host_ids=0 if host_ids is None else host_ids.ctypes.data,
        num_tiles=matrix.num_tiles,
        num_chunks=matrix.num_chunks,
        num_rows=matrix.num_rows,
    )


def attention_params(
    attention: Attention[DeviceArray], cache: LayerCache[DeviceArray], step: Step[DeviceArray]
) -> AttentionParams:
    """What of attention is the same in all layers, whose caches the kernel has."""
    scale = attention.scale / (CODE_FACTOR if cache.scales else 1)
    return AttentionParams(
        qkv=0,
        cache=cache_params(cache),
        block_tables=step.block_tables.pointer,
        positions=step.positions.pointer,
        work=AttentionWork(
            counts=0, items=0, arrivals=0, partial_outputs=0, partial_sums=0, prefix=NO_WORK, has_both=0
        ),
        sinks=0,
        out=0,
        num_tokens=step.token_ids.size,
        num_kv_heads=attention.num_kv_heads,
        group=attention.num_heads // attention.num_kv_heads,
        qkv_width=attention.qkv_width,
        block_tokens=cache.keys.shape[2],
        max_blocks=step.block_tables.shape[1],
        window=0,
        scores=ScoreParams(scale_log2=scale * math.log2(math.e), softcap=0.0, inverse_softcap=0.0),
    )
