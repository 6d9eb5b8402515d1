"""Time of a mixture of experts, by layers of real models: ``python -m tests.bench.ops_moe [TOKENS,...]``.

Prints microseconds of one layer in a replayed graph of dependent ones, over copies of the weights that no cache holds,
then those of its parts alone; and the bytes of the weights of all experts that are used per second.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import partial

import numpy as np

from kernels.devices.cuda import CudaDevice
from kernels.devices.open import open_device
from kernels.ops.layers.expert_plan import plan_rows, tile_sizes
from kernels.ops.layers.routed_matmul import multiply_expert_tiles, multiply_routed
from kernels.ops.layers.router import route
from kernels.ops.matmul_params import Epilogue, Product
from kernels.ops.moe import _combine, norm_moe_residual
from kernels.ops.norm import norm_rows
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.memory import MemoryPlan
from kernels.weights.packed import Experts, Router
from kernels.weights.parameters import Clamp, RmsNorm
from kernels.weights.weight_store import PackedWeightStore
from tests.bench.graph_time import time_us
from tests.kernels.ops.random_weights import random_weight

GIB = 1 << 30
COPIES = 4


@dataclass(frozen=True)
class Shape:
    name: str
    gate_up: str
    down: str
    hidden: int
    inner: int
    experts: int
    used: int
    clamp: Clamp | None = None


SHAPES = [
    Shape("Qwen3-30B-A3B", "Q4_K", "Q4_K", 2048, 768, 128, 8),
    Shape("Qwen3-30B-A3B", "Q4_K", "Q6_K", 2048, 768, 128, 8),
    Shape("Qwen3.6-35B-A3B", "Q4_K", "Q4_K", 2048, 512, 256, 8),
    Shape("gpt-oss-20b", "MXFP4", "MXFP4", 2880, 2880, 32, 4, Clamp(1.702, 7.0)),
]
TOKENS = (1, 4, 8, 64, 256, 2048)


class Layers:
    """Copies of a layer's weights on the device."""

    def __init__(self, device: CudaDevice, shape: Shape) -> None:
        rng = np.random.default_rng(0)
        store = PackedWeightStore(device.context, device.weights)
        outer, inner = (shape.experts, shape.inner, shape.hidden), (shape.experts, shape.hidden, shape.inner)
        gate, up, down = (
            random_weight(format_, size, rng)
            for format_, size in ((shape.gate_up, outer), (shape.gate_up, outer), (shape.down, inner))
        )
        self.experts: list[Experts] = [store.experts(gate, up, down) for _ in range(COPIES)]
        routers = (random_weight("F32", (shape.experts, shape.hidden), rng) for _ in range(COPIES))
        self.routers: list[Router] = [store.router(weight, shape.used) for weight in routers]
        store.load(lambda _done, _total: None)
        norm_weight = np.full(shape.hidden, 2, np.float32)
        self.norm = RmsNorm(device.upload(device.weights, norm_weight), 1e-6)

    def expert_bytes(self) -> int:
        """Of the weights of one expert."""
        experts = self.experts[0]
        return sum(matrix.expert_bytes for matrix in (*experts.gate_up, experts.down))


def time_parts(device: CudaDevice, shape: Shape, layers: Layers, x: DeviceArray) -> dict[str, float]:
    """The whole and its parts."""
    context, norm = device.context, layers.norm
    out = context.scratch(x.shape, np.float32)
    timed = partial(time_us, device, num_copies=COPIES)

    def whole(number: int) -> None:
        experts, router = layers.experts[number], layers.routers[number]
        norm_moe_residual(context, x, norm, router, experts, shape.clamp, out=out)

    num_tokens, hidden = x.shape
    num_pairs = num_tokens * shape.used
    normed = context.scratch((num_tokens, hidden), np.float16)
    times = {"all": timed(whole)}
    times["route"] = timed(lambda number: void(route(context, x, norm, layers.routers[number], normed, None)))
    norm_rows(context, x, norm, rows=None, out=normed)
    routings = [route(context, x, norm, router, normed, None) for router in layers.routers]
    activated = context.scratch((num_pairs, shape.inner), np.float16)
    results = context.scratch((num_pairs, hidden), np.float32)
    epilogue = Epilogue.CLAMPED_SWIGLU if shape.clamp else Epilogue.SWIGLU
    inputs, plan = normed, None
    if not routings[0].is_small:
        sizes = tile_sizes(context.gpu, layers.experts[0], num_tokens, shape.used, shape.experts)
        chosen = routings[0].experts
        times["plan"] = timed(lambda _number: void(plan_rows(context, chosen, normed, shape.experts, sizes)))
        plan, inputs = plan_rows(context, chosen, normed, shape.experts, sizes)

    def product(number: int, *, first: bool) -> None:
        experts, routing = layers.experts[number], routings[number]
        if first:
            each = Product(inputs, experts.gate_up[0], activated, epilogue, alpha=1.702, limit=7.0)
        else:
            each = Product(activated, experts.down, results, Epilogue.STORE_FLOAT)
        if plan is None:
            multiply_routed(context, each, routing.logits, routing.experts, is_first=first)
        else:
            multiply_expert_tiles(context, each, plan.gate_up if first else plan.down, is_first=first)

    times["gate_up"] = timed(lambda number: product(number, first=True))
    times["down"] = timed(lambda number: product(number, first=False))
    places = plan.places if plan else None
    times["sum"] = timed(lambda number: _combine(context, results, routings[number], places, None, True, x))
    return times


def void(_result: object) -> None:
    """Of what is only enqueued."""


def main() -> None:
    tokens = [int(text) for text in sys.argv[1].split(",")] if len(sys.argv) > 1 else TOKENS
    device = open_device("cuda:0")
    assert isinstance(device, CudaDevice)
    device.allocate(
        MemoryPlan(weights=6 * GIB, kv_cache=0, scratch=4 * GIB, step_buffers=0, graphs=GIB // 4, cuda_context=GIB // 4)
    )
    print(f"{device.description}: us")
    for shape in SHAPES:
        device.weights.reset()
        layers = Layers(device, shape)
        for num_tokens in tokens:
            device.context.begin_step()
            x = np.random.default_rng(1).standard_normal((num_tokens, shape.hidden), np.float32)
            times = time_parts(device, shape, layers, device.upload(device.context._arena, x))
            num_experts = shape.experts * (1 - (1 - shape.used / shape.experts) ** num_tokens)
            rate = num_experts * layers.expert_bytes() / times["all"] / 1e3
            cells = ", ".join(f"{name} {us:.1f}" for name, us in times.items())
            print(f"{shape.name:14} {shape.gate_up}/{shape.down} {num_tokens:5}: {cells}; {rate:.0f} GB/s", flush=True)


if __name__ == "__main__":
    main()
