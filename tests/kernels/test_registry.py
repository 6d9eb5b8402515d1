"""kernels.registry: one protocol, and both tables keep it."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import numpy as np
import pytest

from kernels.batch import SAMPLING_ROW, SamplingParams
from kernels.registry import CudaOps, Ops, ReferenceOps
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import H100
from kernels.runtime.launcher import Context
from kernels.weights.parameters import Rope

OPS = {name: method for name, method in vars(Ops).items() if inspect.isfunction(method) and not name.startswith("_")}


def parameters(function: Callable[..., object]) -> list[tuple[str, object, object]]:
    """Name, kind and default of every parameter, without the ``self`` or the ``context`` in front."""
    own = inspect.signature(function).parameters.values()
    return [(each.name, each.kind, each.default) for each in own if each.name not in ("self", "context")]


def test_an_op_is_called_what_its_functions_are_called() -> None:
    for table in (CudaOps(Context(H100)), ReferenceOps()):
        assert all(function.__name__ == name for name, function in vars(table).items())


def test_the_protocol_the_cuda_ops_and_their_references_have_the_same_names() -> None:
    assert OPS.keys() == vars(CudaOps(Context(H100))).keys() == vars(ReferenceOps()).keys()


@pytest.mark.parametrize("name", OPS)
def test_an_op_takes_what_its_reference_takes(name: str) -> None:
    assert parameters(getattr(CudaOps(Context(H100)), name)) == parameters(OPS[name])
    assert parameters(getattr(ReferenceOps(), name)) == parameters(OPS[name])


def test_an_op_gives_its_scratch_memory_back_unless_it_returns_it() -> None:
    context = Context(H100)
    ops = CudaOps(context)
    ints = DeviceArray(0, (300,), np.dtype(np.int32))
    ops.rotation(ints, Rope(DeviceArray(0, (1, 32), np.dtype(np.float32)), "neox"), ints, ints)
    kept = context.mark()
    assert kept == 2 * 300 * 32 * 4  # cosines and sines
    logits = DeviceArray(0, (4, 50_000), np.dtype(np.float32))
    drawn, top = (DeviceArray(0, shape, np.dtype(np.int32)) for shape in ((4,), (4, 20)))
    params = SamplingParams(DeviceArray(0, (4,), SAMPLING_ROW), DeviceArray(0, (4,), np.dtype(np.int64)))
    ops.top_log_probabilities(logits, drawn, params, out_logprobs=drawn, out_top_ids=top, out_top_logprobs=top)
    assert context.mark() == kept < context.high_water_bytes
