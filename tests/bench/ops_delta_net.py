"""Time of a gated delta net, with heads of Qwen3.5-9B: ``python -m tests.bench.ops_delta_net [SEQUENCESxTOKENS,...]``.

Prints microseconds in a replayed graph, of all kernels together and of each alone, and the bytes of states that are
read and written per second. Each launch has states of its own, more than a cache holds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from kernels.batch import LayerState, StateRows, Step
from kernels.devices.cuda import CudaDevice
from kernels.devices.open import open_device
from kernels.ops.layers.delta_net import gated_delta_net
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.memory import MemoryPlan
from kernels.weights.parameters import DeltaNet, RmsNorm
from tests.bench.graph_time import time_us

GIB = 1 << 30
COPIES = 4
KEY_HEADS, VALUE_HEADS, DIM, TAPS = 16, 32, 128, 4
CASES = "1x1,4x1,64x1,256x1,1x128,1x512,1x2048,4x2048,1x8192"
KERNELS = "delta_net_inputs", "delta_net_rule", "delta_net_norm"


def random_net(device: CudaDevice, rng: np.random.Generator) -> DeltaNet[DeviceArray]:
    """One with heads as in Qwen3.5-9B."""

    def vector(*shape: int, mean: float = 0.0) -> DeviceArray:
        return device.upload(device.weights, rng.normal(mean, 0.5, shape).astype(np.float32))

    channels = (2 * KEY_HEADS + VALUE_HEADS) * DIM
    return DeltaNet(
        num_key_heads=KEY_HEADS,
        num_value_heads=VALUE_HEADS,
        key_dim=DIM,
        value_dim=DIM,
        head_order="tiled",
        taps=vector(TAPS, channels),
        decay=vector(VALUE_HEADS, mean=-1.5),
        time_bias=vector(VALUE_HEADS),
        norm=RmsNorm(vector(DIM, mean=1.0), 1e-6),
    )


def step_of(device: CudaDevice, num_sequences: int, num_tokens: int) -> Step[DeviceArray]:
    """A step of so many tokens of each sequence, whose states stay where they are."""

    def ints(values: Any) -> DeviceArray:
        return device.upload(device.weights, np.ascontiguousarray(values, np.int32))

    counting = np.arange(num_sequences + 1)
    slots, unread = ints(counting[:-1]), ints([0])
    return Step(
        token_ids=unread,
        positions=ints(np.tile(np.arange(num_tokens), num_sequences)),
        slots=unread,
        sequence_rows=ints(np.repeat(counting[:-1], num_tokens)),
        query_starts=ints(counting * num_tokens),
        context_lengths=slots,
        sequence_lengths=unread,
        block_tables=unread,
        logit_rows=unread,
        states=StateRows(slots, slots),
    )


@contextmanager
def only(device: CudaDevice, kernel: str) -> Iterator[None]:
    """Launch nothing but one kernel, whichever of its forms is wanted."""
    context: Any = device.context
    launch: Callable[..., None] = context.launch

    def filtered(source: str, name: str, *arguments: Any, **options: Any) -> None:
        if name.startswith(kernel):
            launch(source, name, *arguments, **options)

    context.launch = filtered
    yield
    del context.launch


def main() -> None:
    cases = sys.argv[1] if len(sys.argv) > 1 else CASES
    device = open_device("cuda:0")
    assert isinstance(device, CudaDevice)
    device.allocate(
        MemoryPlan(weights=8 * GIB, kv_cache=0, scratch=4 * GIB, step_buffers=0, graphs=GIB // 4, cuda_context=GIB // 4)
    )
    print(f"{device.description}: us")
    for case in cases.split(","):
        num_sequences, num_tokens = map(int, case.split("x"))
        device.weights.reset()
        device.context.begin_step()
        rng = np.random.default_rng(0)
        net, step = random_net(device, rng), step_of(device, num_sequences, num_tokens)
        rows = rng.standard_normal((num_sequences * num_tokens, net.projected_width), np.float32).astype(np.float16)
        projected = device.upload(device.weights, rows)
        out = device.weights.allocate((rows.shape[0], net.value_width), np.float16)
        states = [
            LayerState(
                device.weights.allocate((num_sequences, TAPS - 1, net.channels), np.float32),
                device.weights.allocate((num_sequences, VALUE_HEADS, DIM, DIM), np.float32),
            )
            for _ in range(COPIES)
        ]
        for array in (array for state in states for array in state):
            device.stream.fill(array.pointer, 0, array.nbytes)

        def run(number: int) -> None:
            gated_delta_net(device.context, projected, net, step, out_state=states[number], out=out)  # noqa: B023

        times = {"all": time_us(device, run, COPIES)}
        for kernel in KERNELS:
            with only(device, kernel):
                times[kernel.removeprefix("delta_net_")] = time_us(device, run, COPIES)
        rate = 2 * states[0].matrices.nbytes / times["all"] / 1e3
        cells = ", ".join(f"{name} {us:.1f}" for name, us in times.items())
        print(f"{case:>8}: {cells}; states {rate:.0f} GB/s", flush=True)


if __name__ == "__main__":
    main()
