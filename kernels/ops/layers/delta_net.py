"""Gated delta nets; see `kernels.reference.delta_net`."""

from __future__ import annotations

import numpy as np

from kernels.batch import LayerState, Step
from kernels.ops.layers.convolution import ConvolutionParams, convolution_params
from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_constants import declare_constants
from kernels.runtime.cuda_struct import CudaStruct, Float32, Int32, Pointer
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import GpuSpec
from kernels.runtime.launcher import Context
from kernels.weights.parameters import DeltaNet

STATE_DIMS = (16, 32, 64, 128)
"""Sizes of a head's queries and keys, and of its values."""

_SOURCE = "delta_net/delta_net"
_THREADS = 128
_COLUMNS = 32  # of a block of delta_net_rule
_FEWEST_OF_STEP = 8  # sequences of delta_net_rule_step
_INPUT_TOKENS = 8  # of a block of delta_net_inputs_many
_STAGE_TOKENS = 16  # of a sequence, in shared memory at once

declare_constants("delta_net/delta_net.cu", THREADS=_THREADS, INPUT_TOKENS=_INPUT_TOKENS, STAGE_TOKENS=_STAGE_TOKENS)


class DeltaNetSizes(CudaStruct, source=_SOURCE):
    """Numbers of heads and elements."""

    num_tokens: Int32
    num_key_heads: Int32
    num_value_heads: Int32
    value_dim: Int32
    grouped: Int32
    stride: Int32  # of a row of what is projected


class DeltaNetParams(CudaStruct, source=_SOURCE):
    """What delta_net_inputs, delta_net_rule and delta_net_norm are given."""

    projected: Pointer  # [num_tokens, stride] float16: channels, z, beta, alpha
    convolution: ConvolutionParams
    matrices: Pointer  # [num_slots, num_value_heads, value_dim, KEY_DIM] float32
    decay: Pointer  # [num_value_heads] float32
    time_bias: Pointer  # [num_value_heads] float32
    queries_keys: Pointer  # [num_tokens, 2, num_key_heads, KEY_DIM] float32, normed
    values: Pointer  # [num_tokens, num_value_heads, value_dim] float32
    gates: Pointer  # [num_tokens, num_value_heads, 2] float32: by what a state is multiplied, and the change's rate
    products: Pointer  # [num_tokens, num_key_heads] float32 of the query and the key of a head
    answers: Pointer  # [num_tokens, num_value_heads, value_dim] float32
    norm: Pointer  # [value_dim] float32
    out: Pointer  # [num_tokens, num_value_heads, value_dim] float16
    epsilon: Float32
    inverse_value_dim: Float32
    sizes: DeltaNetSizes


def variants() -> list[Variant]:
    """What of delta_net.cu is compiled."""
    return [(_SOURCE, {"KEY_DIM": key_dim}) for key_dim in STATE_DIMS]


def gated_delta_net(
    context: Context,
    projected: DeviceArray,
    net: DeltaNet[DeviceArray],
    step: Step[DeviceArray],
    *,
    out_state: LayerState[DeviceArray],
    out: DeviceArray,
) -> None:
    """Convolution and SiLU of queries, keys and values, the delta rule, and a norm gated by SiLU(z).

    ``projected`` [T, net.projected_width] float16: queries, keys, values, z, beta and alpha side by side. What comes
    out in between is float32, as the states are, which are advanced token by token. ``out`` [T, net.value_width]
    float16; rows of tokens with position -1 become zero.
    """
    num_tokens, stride = projected.shape
    assert stride == net.projected_width and out.shape == (num_tokens, net.value_width)
    assert net.key_dim in STATE_DIMS and net.value_dim in STATE_DIMS and stride % 4 == 0
    if not num_tokens:
        return
    key_width, heads = net.num_key_heads * net.key_dim, net.num_value_heads
    params = DeltaNetParams(
        projected=projected.pointer,
        convolution=convolution_params(net.taps, step, out_state),
        matrices=out_state.matrices.pointer,
        decay=net.decay.pointer,
        time_bias=net.time_bias.pointer,
        queries_keys=context.scratch((num_tokens, 2, key_width), np.float32).pointer,
        values=context.scratch((num_tokens, net.value_width), np.float32).pointer,
        gates=context.scratch((num_tokens, heads, 2), np.float32).pointer,
        products=context.scratch((num_tokens, net.num_key_heads), np.float32).pointer,
        answers=context.scratch((num_tokens, net.value_width), np.float32).pointer,
        norm=net.norm.weight.pointer,
        out=out.pointer,
        epsilon=net.norm.epsilon,
        inverse_value_dim=1 / net.value_dim,
        sizes=DeltaNetSizes(
            num_tokens=num_tokens,
            num_key_heads=net.num_key_heads,
            num_value_heads=heads,
            value_dim=net.value_dim,
            grouped=net.head_order == "grouped",
            stride=stride,
        ),
    )
    input_blocks = -(-((key_width + net.value_width) // 4 + heads) // _THREADS)
    num_sequences = step.context_lengths.size
    rule_blocks = num_sequences * heads * -(-net.value_dim // _COLUMNS)
    norm_blocks = -(-num_tokens * heads // (_THREADS // 32))
    kernel, input_tokens = input_kernel(context.gpu, num_tokens)
    input_grid = -(-num_tokens // input_tokens), input_blocks
    context.launch(_SOURCE, kernel, input_grid, _THREADS, params, KEY_DIM=net.key_dim)
    kernel = rule_kernel(num_tokens, num_sequences)
    context.launch(_SOURCE, kernel, rule_blocks, _THREADS, params, KEY_DIM=net.key_dim)
    context.launch(_SOURCE, "delta_net_norm", norm_blocks, _THREADS, params, KEY_DIM=net.key_dim)


def input_kernel(gpu: GpuSpec, num_tokens: int) -> tuple[str, int]:
    """Which one takes less time for so many tokens, and how many of them a block has."""
    if num_tokens >= _INPUT_TOKENS * gpu.num_sms:
        return "delta_net_inputs_many", _INPUT_TOKENS
    return "delta_net_inputs", 1


def rule_kernel(num_tokens: int, num_sequences: int) -> str:
    """Which one takes less time; their bits are the same."""
    return "delta_net_rule_step" if _FEWEST_OF_STEP <= num_sequences == num_tokens else "delta_net_rule"
