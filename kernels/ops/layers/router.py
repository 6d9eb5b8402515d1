"""The router of a mixture: norm, logits, and the choice of experts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from kernels.ops.matmul_params import RoutedShared
from kernels.ops.matmul_tuning import MAX_SMALL_BATCH
from kernels.ops.norm import NORM_PARTITIONS, SHORT_WIDTH, DeviceNorm, NormParams, norm_params
from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_constants import declare_constants
from kernels.runtime.cuda_struct import CudaStruct, Int32, Pointer
from kernels.runtime.device_array import DeviceArray, pointer_of
from kernels.runtime.gpu_spec import GpuSpec
from kernels.runtime.launcher import Context
from kernels.weights.packed import NUM_ARRIVALS, Router

_SOURCE = "moe/router"
_MANY_TOKENS = 8  # of a block of moe_logits_many
_MANY_EXPERTS = 8  # of it at once, or half of it
_SLAB_EXPERTS = 32  # of a block at a time, so that two of them fit an SM
_MOST_EXPERTS = 2  # of a block of moe_logits_most* at once
_LEAST_TOKENS = MAX_SMALL_BATCH + 1  # for which rows are held in registers
_HELD = (
    (2 * SHORT_WIDTH, "moe_logits_most", 2 * _MANY_TOKENS),
    (3 * SHORT_WIDTH, "moe_logits_most_wide", _MANY_TOKENS),
)
"""The widest rows that a kernel holds, and of how many tokens a block has them."""


declare_constants("moe/router.cu", MANY_TOKENS=_MANY_TOKENS, SLAB_EXPERTS=_SLAB_EXPERTS)


class ChoiceParams(CudaStruct, source=_SOURCE):
    """What is made of the logits."""

    experts: Pointer  # [num_tokens, num_used] int32 by rank; moe_logits: -1
    routing_weights: Pointer  # [num_tokens, num_used] float32: softmax over the chosen
    arrivals: Pointer  # [blocks of tokens] uint32 moe_logits_most*: counters, 0 before and after


class RouteParams(CudaStruct, source=_SOURCE):
    """What moe_logits, moe_logits_* and moe_choose are given."""

    x: Pointer  # [num_tokens, width] float32 residual stream
    weight: Pointer  # [num_experts, width] float32 router
    bias: Pointer  # [num_experts] float32
    input_weight: Pointer  # [width] float32, or null: by what `normed` differs from what the router is given
    shared_gate: Pointer  # [width] float32: of the expert that all tokens go through; moe_logits
    shares: Pointer  # [num_tokens] float32: what it is multiplied by; moe_logits
    normed: Pointer  # [num_tokens, width] float16
    logits: Pointer  # [num_tokens, num_experts] float32
    norm: NormParams
    choice: ChoiceParams
    num_tokens: Int32
    num_experts: Int32
    num_used: Int32
    block_experts: Int32  # moe_logits_*


class Routing(NamedTuple):
    """The experts of each token, with their weights; or, of few tokens, only the logits to choose them by."""

    logits: DeviceArray  # [T, experts] float32
    experts: DeviceArray  # [T, num_used] int32
    routing_weights: DeviceArray | None  # [T, num_used] float32; None: of few tokens

    @property
    def is_small(self) -> bool:
        """Whether the first product chooses the experts."""
        return self.routing_weights is None


class LogitsShape(NamedTuple):
    """How logits of more than a few tokens are launched."""

    kernel: str
    grid: tuple[int, int]
    num_threads: int
    shared_bytes: int
    block_experts: int
    chooses: bool  # the experts, too


def variants() -> list[Variant]:
    """What of router.cu is compiled."""
    return [(_SOURCE, {})]


def logits_shape(gpu: GpuSpec, num_tokens: int, width: int, num_experts: int) -> LogitsShape:
    """For so many tokens: about one block an SM of those that hold rows in registers, two of the others."""
    sums_bytes = NORM_PARTITIONS * (2 + _SLAB_EXPERTS) * 4  # of a token
    for most, kernel, tokens in _HELD:
        if width <= most and num_tokens >= _LEAST_TOKENS:
            grid, block_experts = _cut(num_tokens, tokens, num_experts, gpu.num_sms, _MOST_EXPERTS)
            return LogitsShape(kernel, grid, 2 * 32 * NORM_PARTITIONS, tokens * sums_bytes, block_experts, True)
    kernel, tokens, token_bytes = "moe_logits_many", _MANY_TOKENS, 4 * width + sums_bytes
    if tokens * token_bytes > gpu.shared_bytes:
        kernel, tokens = "moe_logits_pairs", 2
    _, block_experts = _cut(num_tokens, _MANY_TOKENS, num_experts, 2 * gpu.num_sms, _MANY_EXPERTS)
    grid = -(-num_tokens // tokens), -(-num_experts // block_experts)
    return LogitsShape(kernel, grid, 32 * NORM_PARTITIONS, tokens * token_bytes, block_experts, False)


def _cut(
    num_tokens: int, block_tokens: int, num_experts: int, num_blocks: int, at_once: int
) -> tuple[tuple[int, int], int]:
    """The grid, and how many experts a block has: as many as leave about ``num_blocks`` blocks."""
    token_blocks = -(-num_tokens // block_tokens)
    block_experts = -(-num_experts // max(1, num_blocks // token_blocks) // at_once) * at_once
    return (token_blocks, -(-num_experts // block_experts)), block_experts


def route(
    context: Context,
    x: DeviceArray,
    norm: DeviceNorm,
    router: Router,
    normed: DeviceArray,
    shared: RoutedShared | None,
) -> Routing:
    """``x`` [T, H] normed to ``normed``, and the router on it."""
    num_tokens, width = x.shape
    num_experts, num_used = router.weight.shape[0], router.num_used
    is_small = num_tokens <= MAX_SMALL_BATCH
    routing = Routing(
        context.scratch((num_tokens, num_experts), np.float32),
        context.scratch((num_tokens, num_used), np.int32),
        None if is_small else context.scratch((num_tokens, num_used), np.float32),
    )
    shape = None if is_small else logits_shape(context.gpu, num_tokens, width, num_experts)
    params = RouteParams(
        x=x.pointer,
        weight=router.weight.pointer,
        bias=router.bias.pointer,
        input_weight=pointer_of(router.input_weight),
        shared_gate=shared.output_gate.pointer if shared else 0,
        shares=shared.shares.pointer if shared else 0,
        normed=normed.pointer,
        logits=routing.logits.pointer,
        norm=norm_params(norm, width),
        choice=ChoiceParams(
            experts=routing.experts.pointer,
            routing_weights=pointer_of(routing.routing_weights),
            arrivals=router.arrivals.pointer,
        ),
        num_tokens=num_tokens,
        num_experts=num_experts,
        num_used=num_used,
        block_experts=shape.block_experts if shape else 0,
    )
    if shape is None:
        grid = num_experts + (shared is not None), num_tokens
        context.launch(_SOURCE, "moe_logits", grid, 32 * NORM_PARTITIONS, params, shared_bytes=8 * width)
        return routing
    assert shape.grid[1] == 1 or shape.grid[0] <= NUM_ARRIVALS, shape
    context.launch(_SOURCE, shape.kernel, shape.grid, shape.num_threads, params, shared_bytes=shape.shared_bytes)
    if not shape.chooses:
        context.launch(_SOURCE, "moe_choose", -(-num_tokens // 8), 256, params)
    return routing
