"""kernels.ops.registry: the CUDA ops as a device offers them, on a dry context."""

from __future__ import annotations

import inspect

import numpy as np

import kernels.reference
from kernels.ops.registry import MODULES, bind, variants
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import H100
from kernels.runtime.launcher import Context
from kernels.weights.parameters import Rope

HOST_ONLY = {"log_probabilities"}  # of the whole vocabulary: on a device `top_log_probabilities` picks the few wanted


def test_a_cuda_op_takes_what_its_numpy_twin_takes() -> None:
    ops = vars(bind(Context(H100)))
    twins = set(kernels.reference.__all__) - HOST_ONLY
    assert twins <= ops.keys()
    functions = {
        name: function
        for module in MODULES
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
    }
    for name in twins:
        context, *parameters = inspect.signature(functions[name]).parameters
        assert context == "context"
        assert parameters == list(inspect.signature(getattr(kernels.reference, name)).parameters), name


def test_an_op_gives_its_scratch_memory_back_unless_it_returns_it() -> None:
    context = Context(H100)
    ops = bind(context)
    ints = DeviceArray(0, (300,), np.dtype(np.int32))
    ops.rotation(ints, Rope(DeviceArray(0, (1, 32), np.dtype(np.float32)), "neox"), ints, ints)
    kept = context.mark()
    assert kept == 2 * 300 * 32 * 4  # cosines and sines
    logits = DeviceArray(0, (4, 50_000), np.dtype(np.float32))
    drawn, top = (DeviceArray(0, shape, np.dtype(np.int32)) for shape in ((4,), (4, 20)))
    ops.top_log_probabilities(logits, drawn, 20, out_logprobs=drawn, out_top_ids=top, out_top_logprobs=top)
    assert context.mark() == kept < context.high_water_bytes


def test_no_variant_is_listed_twice() -> None:
    listed = [(source, *sorted(defines.items())) for source, defines in variants()]
    assert len(listed) == len(set(listed))
