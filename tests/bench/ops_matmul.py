"""Time of products on packed weights: ``python -m tests.bench.ops_matmul [TOKENS,... [NAME]]``.

By matrices of real models, or those whose names begin with NAME. Prints microseconds of one launch in a replayed graph
of dependent ones (with what else it needs: partitions to be added), over copies of the weights that no cache holds, and
for each the bytes of weights read per second or the operations per second, whichever it is closer to being bound by.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace

import numpy as np
from cupy.cuda import runtime

from kernels.devices.cuda import CudaDevice
from kernels.devices.open import open_device
from kernels.ops.copied.copy_value import copy_value
from kernels.ops.matmul import project
from kernels.ops.matmul_params import Epilogue
from kernels.runtime.memory import MemoryPlan
from kernels.weights.half_copy import HalfCopies, allocate_half, unpack
from kernels.weights.packed import PackedMatrix, Projection
from kernels.weights.parameters import RmsNorm
from kernels.weights.weight_store import PackedWeightStore
from tests.bench.graph_time import LAUNCHES, time_us
from tests.kernels.ops.random_weights import random_weight

GIB = 1 << 30
ROTATED_BYTES = 256 << 20  # five times the cache


@dataclass(frozen=True)
class Shape:
    name: str
    format: str
    rows: int
    width: int
    is_gated: bool = False
    has_norm: bool = False


SHAPES = [
    Shape("Qwen qkv", "Q5_0", 1152, 896, has_norm=True),
    Shape("Qwen o", "Q5_0", 896, 896),
    Shape("Qwen gate_up", "Q5_0", 9728, 896, is_gated=True, has_norm=True),
    Shape("Qwen down", "Q4_K", 896, 4864),
    Shape("Qwen down", "Q6_K", 896, 4864),
    Shape("Qwen head", "Q8_0", 151936, 896, has_norm=True),
    Shape("Phi-3 qkv", "Q5_K", 9216, 3072, has_norm=True),
    Shape("Phi-3 o", "Q4_K", 3072, 3072),
    Shape("Phi-3 gate_up", "Q4_K", 16384, 3072, is_gated=True, has_norm=True),
    Shape("Phi-3 gate_up", "Q4_0", 16384, 3072, is_gated=True, has_norm=True),
    Shape("Phi-3 down", "Q4_K", 3072, 8192),
    Shape("Phi-3 down", "Q6_K", 3072, 8192),
    Shape("Llama up", "Q4_K", 14336, 4096),
    Shape("Llama up", "IQ4_XS", 14336, 4096),
    Shape("Llama up", "Q3_K", 14336, 4096),
    Shape("Llama up", "Q2_K", 14336, 4096),
    Shape("Llama down", "Q4_K", 4096, 14336),
    Shape("Llama down", "IQ4_XS", 4096, 14336),
    Shape("Llama down", "Q3_K", 4096, 14336),
    Shape("Llama down", "Q2_K", 4096, 14336),
    Shape("Llama down", "IQ3_S", 4096, 14336),
    Shape("Llama down", "IQ2_XXS", 4096, 14336),
    Shape("gpt-oss qkv", "Q8_0", 5120, 2880, has_norm=True),
    Shape("gpt-oss o", "Q8_0", 2880, 4096),
]
TOKENS = (1, 8, 16, 64, 256, 8192)


def copies_of(device: CudaDevice, shape: Shape, rng: np.random.Generator) -> list[PackedMatrix]:
    """The matrix as often as it takes to keep it out of the cache, with float16 copies where engines have them."""
    copies = HalfCopies(device.weights, lambda _, matrix: copy_value(device.gpu, matrix) > 0)
    store = PackedWeightStore(device.context, device.weights, copies=copies)
    weight = random_weight(shape.format, (shape.rows, shape.width), rng)
    first = (store.gate_up if shape.is_gated else store.projection)([weight]).matrices[0]
    store.load(lambda _done, _total: None)
    matrices = [first]
    while len(matrices) * first.packed.nbytes < ROTATED_BYTES and len(matrices) < LAUNCHES:
        packed = device.weights.allocate(first.packed.shape, np.uint8)
        runtime.memcpyAsync(
            packed.pointer, first.packed.pointer, packed.nbytes, runtime.memcpyDeviceToDevice, device.stream.handle
        )
        half_copy = None
        if first.half_copy is not None:
            half_copy = allocate_half(device.context, device.weights, first)
            unpack(device.context, replace(first, packed=packed), half_copy)
        matrices.append(replace(first, packed=packed, half_copy=half_copy))
    return matrices


def time_product(
    device: CudaDevice, shape: Shape, matrices: list[PackedMatrix], num_tokens: int, rng: np.random.Generator
) -> float:
    """Median time of one launch."""
    context = device.context
    context.begin_step()
    x = rng.standard_normal((num_tokens, shape.width), np.float32)
    x = device.upload(context._arena, x if shape.has_norm else x.astype(np.float16))
    norm = RmsNorm(device.upload(context._arena, np.ones(shape.width, np.float32)), 1e-6) if shape.has_norm else None
    out = context.scratch((num_tokens, shape.rows // (2 if shape.is_gated else 1)), np.float16)
    epilogue = Epilogue.SWIGLU if shape.is_gated else Epilogue.STORE_HALF

    def enqueue(copy: int) -> None:
        project(context, x, Projection((matrices[copy],)), out, epilogue, norm=norm)

    return time_us(device, enqueue, len(matrices))


def main() -> None:
    tokens = [int(text) for text in sys.argv[1].split(",")] if len(sys.argv) > 1 else TOKENS
    device = open_device("cuda:0")
    assert isinstance(device, CudaDevice)
    device.allocate(
        MemoryPlan(weights=4 * GIB, kv_cache=0, scratch=4 * GIB, step_buffers=0, graphs=GIB // 4, cuda_context=GIB // 4)
    )
    print(f"{device.description}: us, and GB/s of weights or TFLOP/s")
    print(f"{'matrix':14} {'type':7} {'rows':>6} {'width':>5} " + " ".join(f"{n:>16}" for n in tokens))
    for shape in (shape for shape in SHAPES if shape.name.startswith("".join(sys.argv[2:3]))):
        rng = np.random.default_rng(0)
        device.weights.reset()
        matrices = copies_of(device, shape, rng)
        cells = []
        for num_tokens in tokens:
            if num_tokens > 256 and shape.rows > 100_000:
                cells.append("-")  # the head is for last tokens only
                continue
            us = time_product(device, shape, matrices, num_tokens, rng)
            rate = f"{matrices[0].packed.nbytes / us / 1e3:.0f} GB/s"
            if num_tokens > 64:
                rate = f"{2 * num_tokens * shape.rows * shape.width / us / 1e6:.0f} TF"
            cells.append(f"{us:.1f} {rate}")
        print(
            f"{shape.name:14} {shape.format:7} {shape.rows:6} {shape.width:5} " + " ".join(f"{c:>16}" for c in cells),
            flush=True,
        )


if __name__ == "__main__":
    main()
