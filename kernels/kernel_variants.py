"""Every kernel that the ops can launch, by the file that it is in and what that is compiled with."""

from __future__ import annotations

from kernels.ops import activation, attention, attention_plan, decode_step, matmul, moe, norm, rope, sampling
from kernels.ops.attention_parts import hopper_attention, prefix_attention
from kernels.ops.copied import copied_matmul
from kernels.ops.decode_layers import decode_layers, streamed_layers
from kernels.ops.layers import convolution, delta_net, grouped_matmul, router, shared_expert
from kernels.ops.sliced_k import sliced_k_matmul
from kernels.ops.stream_k import stream_k_matmul
from kernels.ops.unpacked import unpacked_matmul
from kernels.runtime.compiler import Variant
from kernels.weights import half_copy, repack

MODULES = (
    *(activation, attention, attention_plan, convolution, decode_layers, decode_step, delta_net, matmul, moe, norm),
    *(hopper_attention, prefix_attention, repack, rope, router, sampling, shared_expert),
    *(copied_matmul, grouped_matmul, half_copy, sliced_k_matmul, stream_k_matmul, streamed_layers),
    unpacked_matmul,
)
"""The modules that launch kernels of their own."""


def variants() -> list[Variant]:
    """Every variant that the ops can launch, each once."""
    seen: dict[tuple[object, ...], Variant] = {}
    for module in MODULES:
        for source, defines in module.variants():
            seen[source, *sorted(defines.items())] = (source, defines)
    return list(seen.values())


def common_variants() -> list[Variant]:
    """Those that depend on no model."""
    return [(source, defines) for source, defines in variants() if not defines]
