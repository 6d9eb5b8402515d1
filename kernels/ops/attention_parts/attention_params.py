"""What the kernels of `kernels.ops.attention` are given."""

from __future__ import annotations

from kernels.ops.attention_parts.prefix_attention import PrefixWork
from kernels.ops.rope import LayerCacheParams
from kernels.runtime.cuda_struct import CudaStruct, Float32, Int32, Pointer
from kernels.runtime.tma import TensorMap


class AttentionWork(CudaStruct, source="attention/attention"):
    """What a launch has to do, and where the items of the same rows meet."""

    counts: Pointer  # [1] PlanCounts
    items: Pointer  # [counts] Item
    arrivals: Pointer  # [decode items, num_kv_heads] int32, 0 before and after
    partial_outputs: Pointer  # [partial_rows, num_kv_heads, head_dim] float32
    partial_sums: Pointer  # [partial_rows, num_kv_heads, 2] float32
    prefix: PrefixWork
    has_both: Int32  # attention_decode follows the kernel of prefill work, and overlaps it


class ScoreParams(CudaStruct, source="attention/attention"):
    """What is done to products of queries and keys."""

    scale_log2: Float32  # scale * log2(e): softmax in powers of 2
    softcap: Float32  # of what is not scaled, where SOFTCAP is defined
    inverse_softcap: Float32


class AttentionParams(CudaStruct, source="attention/attention"):
    """What attention_decode and attention_prefill are given."""

    qkv: Pointer  # [num_tokens, qkv_width] float16, rotated queries first
    cache: LayerCacheParams
    block_tables: Pointer  # [num_sequences, max_blocks] int32
    positions: Pointer  # [num_tokens] int32, -1: padding
    work: AttentionWork
    sinks: Pointer  # [num_heads] float32 or null
    out: Pointer  # [num_tokens, num_heads * head_dim] float16
    num_tokens: Int32
    num_kv_heads: Int32
    group: Int32
    qkv_width: Int32
    block_tokens: Int32
    max_blocks: Int32
    window: Int32
    scores: ScoreParams


class HopperAttentionParams(CudaStruct, source="attention/attention_hopper"):
    """What attention_prefill_hopper is given."""

    attention: AttentionParams
    key_map: TensorMap  # of a layer's keys [blocks * KV heads * block_tokens, head_dim], boxes of 16 by 64 columns
    value_map: TensorMap
