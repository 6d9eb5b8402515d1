"""The feed-forward network beside a mixture's experts that every token goes through."""

from __future__ import annotations

import numpy as np

from kernels.ops.activation import swiglu_rows
from kernels.ops.matmul import project
from kernels.ops.matmul_params import Epilogue
from kernels.ops.norm import NORM_PARTITIONS
from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_struct import CudaStruct, Int32, Pointer
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context
from kernels.weights.packed import SharedExpert

_SOURCE = "shared_expert/shared_expert"


class SharedGateParams(CudaStruct, source=_SOURCE):
    """What shared_expert_gate is given."""

    normed: Pointer  # [num_tokens, width] float16
    output_gate: Pointer  # [width] float32
    activated: Pointer  # [num_tokens, inner] float16, multiplied by the gate
    width: Int32
    inner: Int32


def variants() -> list[Variant]:
    """What of shared_expert.cu is compiled."""
    return [(_SOURCE, {})]


def add_shared_expert(context: Context, normed: DeviceArray, shared: SharedExpert, *, out: DeviceArray) -> None:
    """Add what ``shared`` makes of ``normed`` [T, H] float16, times sigmoid(output_gate normed), to ``out`` float32.

    The gate is applied to what goes into the last product: in float32 that is the same but for its rounding.
    """
    num_tokens, width = normed.shape
    inner = shared.down.matrices[0].width
    activated = context.scratch((num_tokens, inner), np.float16)
    if shared.gate_up.matrices[0].gated:
        project(context, normed, shared.gate_up, activated, Epilogue.SWIGLU)
    else:
        both = context.scratch((num_tokens, shared.gate_up.num_outputs), np.float16)
        project(context, normed, shared.gate_up, both, Epilogue.STORE_HALF)
        swiglu_rows(context, both, out=activated)
    params = SharedGateParams(
        normed=normed.pointer,
        output_gate=shared.output_gate.pointer,
        activated=activated.pointer,
        width=width,
        inner=inner,
    )
    context.launch(_SOURCE, "shared_expert_gate", num_tokens, 32 * NORM_PARTITIONS, params)
    project(context, activated, shared.down, out, Epilogue.ADD_RESIDUAL)
