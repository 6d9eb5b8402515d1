"""Attention over the paged KV cache: grouped heads, sliding window, sinks; decode, prefill and mixed steps.

Batch-invariant by construction: `kernels.ops.attention_plan` lists the work on the device, once a step, and all layers
use its list.
"""

from __future__ import annotations

import itertools
import math

from kernels.batch import LayerCache, Step
from kernels.ops.attention_parts import hopper_attention, prefix_attention
from kernels.ops.attention_parts.attention_params import AttentionParams, AttentionWork, ScoreParams
from kernels.ops.attention_plan import (
    CROWD,
    DECODE_ROWS,
    PREFILL_WARPS,
    SHORT_CONTEXT,
    SHORT_CROWD,
    SWAPPED_ROWS,
    AttentionPlan,
    AttentionShape,
    attention_shape,
    tile_bytes,
    wide_shape,
    wide_warps,
)
from kernels.ops.rope import (
    HEAD_DIMS,
    WIDE_HEAD_DIMS,
    RopeParams,
    Rotation,
    cache_defines,
    cache_params,
    has_short_heads,
    rope_params,
    rope_write,
    with_codes,
)
from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_struct import CudaStruct, Int32, Pointer
from kernels.runtime.device_array import DeviceArray, pointer_of
from kernels.runtime.gpu_spec import A100, H100, GpuSpec
from kernels.runtime.launcher import Context
from kernels.weights.parameters import Attention


class RopeAttentionParams(CudaStruct, source="attention/attention"):
    """What rope_attention_decode is given."""

    attention: AttentionParams
    rope: RopeParams
    slots: Pointer  # [num_tokens] int32 KV slots: block * block_tokens + row, -1: padding
    num_blocks: Int32  # of the cache


_NARROW, _WIDE = "attention/attention", "attention/attention_wide"
_SOFTCAP = {"SOFTCAP": 1}
CODE_FACTOR = 2.0**-24  # of products with codes: CODE_FACTOR of cuda/rope/kv_cache.cuh


def variants() -> list[Variant]:
    """What of attention.cu and attention_wide.cu is compiled; of soft caps and of codes what published models have."""
    heads = list(itertools.product(HEAD_DIMS, (H100, A100), (False, True)))
    shapes = sorted({(size, attention_shape(gpu, size, crowded=crowded)) for size, gpu, crowded in heads})
    narrow = [(_NARROW, {"HEAD_DIM": head_dim, **shape.defines}) for head_dim, shape in shapes]
    spread = {(size, attention_shape(gpu, size, spread=True)) for size, gpu, _ in heads}
    cuts = sorted({(size, shape.decode_warps) for size, shape in spread.union(shapes)})
    swapped, others = (
        [(_NARROW, {"HEAD_DIM": head_dim, "DECODE_WARPS": warps, "ROPE_ROWS": rows}) for head_dim, warps in cuts]
        for rows in (SWAPPED_ROWS, DECODE_ROWS)
    )
    wide_cases = itertools.product(WIDE_HEAD_DIMS, (H100, A100))
    wide_shapes = sorted({(head_dim, wide_shape(gpu, head_dim)) for head_dim, gpu in wide_cases})
    wide = [(_WIDE, {"HEAD_DIM": head_dim, **shape.defines}) for head_dim, shape in wide_shapes]
    published = [*narrow, *swapped, *wide]
    capped = [(source, defines | _SOFTCAP) for source, defines in published if defines["HEAD_DIM"] in (128, 256)]
    coded = [each for each in published if each[1]["HEAD_DIM"] in (64, 96, 128, 256)]
    return [*published, *others, *capped, *with_codes(coded)]


def cache_shape(num_blocks: int, block_tokens: int, num_kv_heads: int, head_dim: int) -> tuple[int, int, int, int]:
    """Shape of the array of a layer's keys, or values: the tokens of a block lie together for each KV head.

    What KV slot ``s`` holds for head ``h`` is ``cache[s // block_tokens, h, s % block_tokens]``. Of 16 codes of such a
    row those of elements i and i + 8 lie at 2 i and 2 i + 1, with their highest bits inverted: as code + 128.
    """
    if block_tokens % 16:
        raise ValueError(f"cache blocks of {block_tokens} tokens: attention on CUDA wants a multiple of 16")
    return num_blocks, num_kv_heads, block_tokens, head_dim


def paged_attention(
    context: Context,
    qkv: DeviceArray,
    cache: LayerCache[DeviceArray],
    attention: Attention[DeviceArray],
    step: Step[DeviceArray],
    plan: AttentionPlan,
    *,
    out: DeviceArray,
) -> None:
    """softmax(q k^T * scale) v for every token over its own sequence's cache, its own position included.

    ``qkv`` [T, >= num_heads * D] float16: the queries are its first columns. Keys and values of ``cache``
    (`cache_shape`), float16 or codes, hold the step's own tokens already. ``plan`` is what `plan_attention` made of the
    ``step`` for such heads and this window. ``out`` [T, heads * D] float16: zero for tokens with position -1.
    """
    num_kv_heads, head_dim = attention.num_kv_heads, attention.head_dim
    if head_dim in WIDE_HEAD_DIMS:
        _wide_attention(context, qkv, cache, attention, step, plan, out)
        return
    shape = attention_shape(context.gpu, head_dim, crowded=plan.prefix is not None)
    element_bytes, layer_defines = cache.keys.dtype.itemsize, _layer_defines(attention, cache)
    defines = {"HEAD_DIM": head_dim, **shape.defines, **layer_defines}
    if plan.prefill_items.size:
        num_items = plan.prefill_items.shape[0] * num_kv_heads
        params = _params(qkv, cache, attention, step, plan, plan.prefill_items, out)
        if shape.prefill_groups and element_bytes == 2:
            hopper_attention.attend(context, cache, params, num_items, layer_defines)
        else:
            context.launch(
                _NARROW,
                "attention_prefill",
                num_items * shape.prefill_parts,
                PREFILL_WARPS * 32,
                params,
                shared_bytes=shape.prefill_bytes(head_dim, element_bytes),
                **defines,
            )
    decode_params = _params(qkv, cache, attention, step, plan, plan.decode_items, out)
    if plan.prefix:
        prefix_attention.attend_to_prefixes(
            context, plan.prefix, attention, decode_params, tile_bytes(head_dim, element_bytes), layer_defines
        )
    if step.has_short_chunks:
        context.launch(
            _NARROW,
            "attention_decode",
            plan.decode_items.shape[0] * num_kv_heads,
            shape.decode_warps * 32,
            decode_params,
            shared_bytes=shape.decode_bytes(head_dim, element_bytes),
            **defines,
        )


def _wide_attention(
    context: Context,
    qkv: DeviceArray,
    cache: LayerCache[DeviceArray],
    attention: Attention[DeviceArray],
    step: Step[DeviceArray],
    plan: AttentionPlan,
    out: DeviceArray,
) -> None:
    """`paged_attention` for heads that no warp can hold."""
    num_kv_heads, head_dim = attention.num_kv_heads, attention.head_dim
    shape = wide_shape(context.gpu, head_dim)
    work = (
        ("attention_wide_prefill", plan.prefill_items, shape.prefill_groups, shape.prefill_rows),
        ("attention_wide_decode", plan.decode_items, 1, DECODE_ROWS),
    )
    for kernel, items, groups, rows in work:
        if items.size:
            context.launch(
                _WIDE,
                kernel,
                items.shape[0] * num_kv_heads,
                groups * wide_warps(head_dim) * 32,
                _params(qkv, cache, attention, step, plan, items, out),
                shared_bytes=shape.shared_bytes(head_dim, cache.keys.dtype.itemsize, rows),
                HEAD_DIM=head_dim,
                **shape.defines,
                **_layer_defines(attention, cache),
            )


def _layer_defines(attention: Attention[DeviceArray], cache: LayerCache[DeviceArray]) -> dict[str, int]:
    return (_SOFTCAP if attention.softcap else {}) | cache_defines(cache)


def rope_attention(
    context: Context,
    qkv: DeviceArray,
    by: Rotation | None,
    attention: Attention[DeviceArray],
    step: Step[DeviceArray],
    plan: AttentionPlan,
    *,
    out_cache: LayerCache[DeviceArray],
    out: DeviceArray,
) -> None:
    """`kernels.ops.rope.rope_write` of the step's tokens to ``step.slots``, then `paged_attention`; the same bits.

    ``qkv`` [T, (num_heads + 2 * kv_heads) * D] float16 comes as it is projected; what it holds afterwards is of no use.
    A step with as many tokens as sequences must have one of each, or none where the context length is 0: it takes one
    kernel, if that knows all that the layer asks for and nothing is attended to together.
    """
    if step.token_ids.size != step.context_lengths.size or not has_short_heads(attention) or plan.prefix:
        rope_write(context, qkv, step.slots, by, attention, out_cache=out_cache)
        paged_attention(context, qkv, out_cache, attention, step, plan, out=out)
        return
    num_kv_heads, head_dim = attention.num_kv_heads, attention.head_dim
    assert qkv.shape[1] == attention.qkv_width, f"rows of {qkv.shape[1]} are not {attention.qkv_width} long"
    num_tokens, num_blocks = step.token_ids.size, out_cache.keys.shape[0]
    element_bytes = out_cache.keys.dtype.itemsize
    rows = SWAPPED_ROWS if attention.num_heads // num_kv_heads <= SWAPPED_ROWS else DECODE_ROWS
    is_short = not step.has_long_context or 0 < attention.window <= SHORT_CONTEXT
    shape = _rope_shape(context.gpu, head_dim, element_bytes, rows, num_tokens * num_kv_heads, is_short=is_short)
    shared_bytes = shape.rope_bytes(head_dim, element_bytes, rows)
    params = RopeAttentionParams(
        attention=_params(qkv, out_cache, attention, step, plan, plan.decode_items, out),
        rope=rope_params(by, attention.head_norms),
        slots=step.slots.pointer,
        num_blocks=num_blocks,
    )
    context.launch(
        _NARROW,
        "rope_attention_decode",
        plan.decode_items.shape[0] * num_kv_heads,
        shape.decode_warps * 32,
        params,
        shared_bytes=context.gpu.spread(shared_bytes, 1) if num_tokens == 1 else shared_bytes,
        HEAD_DIM=head_dim,
        DECODE_WARPS=shape.decode_warps,
        ROPE_ROWS=rows,
        **_layer_defines(attention, out_cache),
    )


def depends_on_context(gpu: GpuSpec, num_kv_heads: int, head_dim: int, num_sequences: int) -> bool:
    """Whether decode steps of so many sequences are cut otherwise where `Step.has_long_context`."""
    num_blocks = num_sequences * num_kv_heads
    if head_dim in WIDE_HEAD_DIMS or num_blocks <= gpu.num_sms:
        return False
    shapes = {attention_shape(gpu, head_dim, crowded=_is_crowd(gpu, num_blocks, each)) for each in (False, True)}
    return len(shapes) > 1


def _is_crowd(gpu: GpuSpec, num_blocks: int, is_short: bool) -> bool:
    return num_blocks > (SHORT_CROWD if is_short else CROWD) * gpu.num_sms


def _rope_shape(
    gpu: GpuSpec, head_dim: int, element_bytes: int, rows: int, num_blocks: int, *, is_short: bool
) -> AttentionShape:
    """Of `rope_attention_decode` for so many blocks before any is divided, of short contexts if ``is_short``."""
    shape = attention_shape(gpu, head_dim, spread=True)
    if num_blocks <= gpu.num_sms and shape.rope_bytes(head_dim, element_bytes, rows) <= gpu.shared_bytes:
        return shape
    return attention_shape(gpu, head_dim, crowded=_is_crowd(gpu, num_blocks, is_short))


def _params(
    qkv: DeviceArray,
    cache: LayerCache[DeviceArray],
    attention: Attention[DeviceArray],
    step: Step[DeviceArray],
    plan: AttentionPlan,
    items: DeviceArray,
    out: DeviceArray,
) -> AttentionParams:
    assert plan.window == attention.window, f"the plan is for a window of {plan.window}, not {attention.window}"
    _, num_kv_heads, block_tokens, head_dim = cache.keys.shape
    assert (num_kv_heads, head_dim) == (attention.num_kv_heads, attention.head_dim), f"{cache.keys.shape}: another's"
    assert head_dim in HEAD_DIMS + WIDE_HEAD_DIMS, f"heads of {head_dim}: there are kernels for others only"
    scale = attention.scale / (CODE_FACTOR if cache.scales else 1)
    work = AttentionWork(
        counts=plan.counts.pointer,
        items=items.pointer,
        arrivals=plan.arrivals.pointer,
        partial_outputs=plan.partial_outputs.pointer,
        partial_sums=plan.partial_sums.pointer,
        prefix=plan.prefix.work(step.query_starts) if plan.prefix else prefix_attention.NO_WORK,
        has_both=step.has_short_chunks and plan.prefill_items.size > 0,
    )
    return AttentionParams(
        qkv=qkv.pointer,
        cache=cache_params(cache),
        block_tables=step.block_tables.pointer,
        positions=step.positions.pointer,
        work=work,
        sinks=pointer_of(attention.sinks),
        out=out.pointer,
        num_tokens=qkv.shape[0],
        num_kv_heads=num_kv_heads,
        group=attention.num_heads // num_kv_heads,
        qkv_width=qkv.shape[1],
        block_tokens=block_tokens,
        max_blocks=step.block_tables.shape[1],
        window=attention.window,
        scores=ScoreParams(
            scale_log2=scale * math.log2(math.e),
            softcap=attention.softcap / scale,
            inverse_softcap=scale / attention.softcap if attention.softcap else 0.0,
        ),
    )
