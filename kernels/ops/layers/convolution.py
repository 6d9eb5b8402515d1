"""Short causal convolutions, whose state is the last inputs of each sequence."""

from __future__ import annotations

from kernels.batch import LayerState, Step
from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_constants import declare_constants
from kernels.runtime.cuda_struct import CudaStruct, Int32, Pointer
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context

_SOURCE = "convolution/convolution"
_THREADS = 128

declare_constants("convolution/convolution.cu", THREADS=_THREADS)


class StateRowsParams(CudaStruct, source=_SOURCE):
    """Which state slots the sequences of a step have."""

    slots: Pointer  # [num_sequences] int32, -1: padding
    sources: Pointer  # [num_sequences] int32, -1: there is no state yet


class ConvolutionParams(CudaStruct, source=_SOURCE):
    """A convolution over the sequences of a step."""

    taps: Pointer  # [num_taps, channels] float32, the last those of the token itself
    inputs: Pointer  # [num_slots, num_taps - 1, channels] float32
    positions: Pointer  # [num_tokens] int32, -1: padding
    sequence_rows: Pointer  # [num_tokens] int32
    query_starts: Pointer  # [num_sequences + 1] int32
    states: StateRowsParams
    num_sequences: Int32
    channels: Int32
    num_taps: Int32


class ShortConvolutionParams(CudaStruct, source=_SOURCE):
    """What convolution_gated and convolution_keep are given."""

    projected: Pointer  # [num_tokens, 3 channels] float16: B, C and x
    out: Pointer  # [num_tokens, channels] float16
    convolution: ConvolutionParams


def variants() -> list[Variant]:
    """What of convolution.cu is compiled."""
    return [(_SOURCE, {})]


def short_convolution(
    context: Context,
    projected: DeviceArray,
    taps: DeviceArray,
    step: Step[DeviceArray],
    *,
    out_state: LayerState[DeviceArray],
    out: DeviceArray,
) -> None:
    """C * convolution(B * x) of ``projected`` [T, 3 * H] float16, which is B, C and x side by side.

    ``taps`` [K, H] float32, the last those of the token itself; what came before the step's tokens is in
    ``out_state``, where the last K - 1 of B * x then are. ``out`` [T, H] float16; rows of tokens with position -1
    become zero.
    """
    num_tokens, channels = out.shape
    assert projected.shape == (num_tokens, 3 * channels) and channels % 4 == 0
    if not num_tokens:
        return
    params = ShortConvolutionParams(
        projected=projected.pointer, out=out.pointer, convolution=convolution_params(taps, step, out_state)
    )
    blocks = -(-channels // (4 * _THREADS))
    context.launch(_SOURCE, "convolution_gated", (num_tokens, blocks), _THREADS, params)
    context.launch(_SOURCE, "convolution_keep", (step.context_lengths.size, blocks), _THREADS, params)


def convolution_params(taps: DeviceArray, step: Step[DeviceArray], state: LayerState[DeviceArray]) -> ConvolutionParams:
    """The convolution with ``taps`` [K, channels] over the sequences of ``step``, whose inputs ``state`` keeps."""
    rows, (num_taps, channels) = step.states, taps.shape
    assert rows is not None, "a step of a model with recurrent layers has states"
    assert state.inputs.shape[1:] == (num_taps - 1, channels), f"{state.inputs.shape} is another layer's"
    return ConvolutionParams(
        taps=taps.pointer,
        inputs=state.inputs.pointer,
        positions=step.positions.pointer,
        sequence_rows=step.sequence_rows.pointer,
        query_starts=step.query_starts.pointer,
        states=StateRowsParams(slots=rows.slots.pointer, sources=rows.sources.pointer),
        num_sequences=rows.slots.size,
        channels=channels,
        num_taps=num_taps,
    )
