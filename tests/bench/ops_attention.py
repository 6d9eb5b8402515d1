"""Time of attention and of what goes with it, for the shapes of real models.

    python -m tests.bench.ops_attention [MODEL ...]

Prints microseconds of one layer (median of replayed graphs of 20 layers), the bytes of K and V that have to be read
per second, and the operations of the two products over visible keys per second. ``fused``: the same with rotation and
the write of K and V in one kernel, as steps of one token a sequence have it. With ``prefixes`` instead of models:
decode steps of sequences that begin with the same blocks, beside the same with blocks of their own.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kernels.batch import CacheScales, LayerCache, PrefixGroups, Step, view
from kernels.cache_format import FLOAT16, Q8, CacheFormat
from kernels.devices.cuda import CudaDevice
from kernels.devices.open import open_device
from kernels.ops.attention import cache_shape, paged_attention, rope_attention
from kernels.ops.attention_parts.prefix_attention import MAX_GROUPS
from kernels.ops.attention_plan import plan_attention
from kernels.ops.rope import rope_write, rotation
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.memory import MemoryPlan
from kernels.weights.parameters import Attention, Rope

BLOCK_TOKENS = 16
LAYERS = 20
GIB = 1 << 30


@dataclass(frozen=True)
class Shape:
    """``sequences`` of ``context`` tokens each, the last ``new`` of them in the step."""

    model: str
    num_heads: int
    num_kv_heads: int
    head_dim: int
    sequences: int
    new: int
    context: int
    window: int = 0


GEMMA, QWEN36 = ("Gemma-3", 16, 8, 256), ("Qwen3.6", 16, 2, 256)
QWEN, PHI, GPT_OSS, LLAMA = ("Qwen", 14, 2, 64), ("Phi-3", 32, 32, 96), ("gpt-oss", 64, 8, 64), ("Llama", 32, 8, 128)
SHAPES = [
    *(Shape(*QWEN, 1, 1, context) for context in (64, 256, 1024, 4096, 32768)),
    *(Shape(*PHI, 1, 1, context) for context in (256, 4096)),
    *(Shape(*GPT_OSS, 1, 1, context, window) for context, window in ((256, 0), (4096, 0), (4096, 128), (131072, 0))),
    Shape(*QWEN, 64, 1, 384),
    Shape(*QWEN, 256, 1, 384),
    Shape(*PHI, 64, 1, 384),
    Shape(*PHI, 256, 1, 384),
    Shape(*PHI, 64, 1, 2000),
    Shape(*GPT_OSS, 64, 1, 384),
    Shape(*GPT_OSS, 256, 1, 384),
    Shape(*GPT_OSS, 256, 1, 384, 128),
    Shape(*GPT_OSS, 1024, 1, 384),
    Shape(*LLAMA, 256, 1, 384),
    *(Shape(*model, 4, 2048, 2048) for model in (QWEN, PHI, GPT_OSS, LLAMA)),
    Shape(*GPT_OSS, 4, 2048, 2048, 128),
    Shape(*QWEN, 64, 128, 128),
    Shape(*PHI, 64, 128, 128),
    *(Shape(*GEMMA, 1, 1, context) for context in (256, 2000)),
    Shape(*GEMMA, 256, 1, 256),
    *(Shape(*QWEN36, 1, 1, context) for context in (256, 4096)),
    Shape(*QWEN36, 4, 2048, 2048),
]
PREFIXES = [
    *((Shape(*model, 256, 1, 2128), 1984) for model in (QWEN, PHI, GPT_OSS)),
    *((Shape(*model, 64, 1, 2128), 1984) for model in (QWEN, PHI, GPT_OSS)),
    *((Shape(*model, 8, 1, 2128), 1984) for model in (QWEN, PHI, GPT_OSS)),
    *((Shape(*model, 256, 1, 512), 256) for model in (QWEN, PHI, GPT_OSS)),
    (Shape(*LLAMA, 256, 1, 2128), 1984),
    (Shape(*PHI, 256, 1, 2128, 2047), 1984),
]
"""Sequences of one token each, and how many tokens they share."""


def step_of(shape: Shape, upload: Callable[[NDArray[np.int32]], DeviceArray]) -> Step[DeviceArray]:
    positions = np.tile(np.arange(shape.context - shape.new, shape.context), shape.sequences)
    rows = np.repeat(np.arange(shape.sequences), shape.new)
    starts = np.arange(shape.sequences + 1) * shape.new
    contexts = np.full(shape.sequences, shape.context)
    blocks = -(-shape.context // BLOCK_TOKENS)
    tables = np.random.default_rng(0).permutation(shape.sequences * blocks).reshape(shape.sequences, blocks)
    slots = tables[rows, positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS
    arrays = (rows, positions, slots, rows, starts, contexts, contexts, tables, starts[1:] - 1)
    return Step(*(upload(np.ascontiguousarray(array, np.int32)) for array in arrays))


def measure(device: CudaDevice, shape: Shape, cache_format: CacheFormat) -> str:
    device.weights.reset()
    device.context.begin_step()
    context, upload = device.context, partial(device.upload, device.weights)
    step = step_of(shape, upload)
    num_tokens, blocks = step.token_ids.size, step.block_tables.size
    rng = np.random.default_rng(0)
    width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    qkv = upload(rng.standard_normal((num_tokens, width), np.float32).astype(np.float16))
    content = cache_shape(blocks, BLOCK_TOKENS, shape.num_kv_heads, shape.head_dim)
    noise = rng.standard_normal(1 << 20, np.float32).astype(np.float16)
    scales = None
    if cache_format is Q8:
        scales = CacheScales(*(upload(np.resize(np.abs(noise) / 50, content[:-1])) for _ in "kv"))
        noise = rng.integers(-127, 128, 1 << 20, np.int8)
    cache = LayerCache(*(upload(np.resize(noise, content)) for _ in "kv"), scales)
    out = device.weights.allocate((num_tokens, shape.num_heads * shape.head_dim), np.float16)
    frequencies = 1 / 10000 ** (np.arange(shape.head_dim // 2) / (shape.head_dim // 2))
    rope = Rope(upload(frequencies.astype(np.float32)[None]), "neox")
    heads = shape.num_heads, shape.num_kv_heads, shape.head_dim
    attention = Attention(*heads, scale=shape.head_dim**-0.5, window=shape.window)
    by = rotation(context, step.positions, rope, step.sequence_lengths, step.sequence_rows)
    plan = plan_attention(context, step, attention)

    def attend() -> None:
        paged_attention(context, qkv, cache, attention, step, plan, out=out)

    def write() -> None:
        rope_write(context, qkv, step.slots, by, attention, out_cache=cache)

    def prepare() -> None:
        plan_attention(context, step, attention)

    def fused() -> None:
        rope_attention(context, qkv, by, attention, step, plan, out_cache=cache, out=out)

    times = [_time_us(device, operation) for operation in (attend, write, prepare, fused)]
    last = np.arange(shape.context - shape.new, shape.context) + 1
    seen = int((np.minimum(last, shape.window) if shape.window else last).sum())
    read = min(shape.window + shape.new - 1, shape.context) if shape.window else shape.context
    read_bytes = 2 * shape.sequences * shape.num_kv_heads * cache_format.head_bytes(shape.head_dim) * read
    operations = 4 * shape.sequences * shape.num_heads * shape.head_dim * seen
    return (
        f"{shape.model:8} {shape.sequences:5} {shape.new:5} {shape.context:7} {shape.window:6} {cache_format.name:7} "
        f"{times[0]:9.2f} {read_bytes / times[0] / 1e3:7.0f} {operations / times[0] / 1e6:7.1f} {times[1]:9.2f} "
        f"{times[2]:7.2f} {times[3]:9.2f} {read_bytes / times[3] / 1e3:7.0f}"
    )


def measure_prefix(device: CudaDevice, shape: Shape, shared: int) -> str:
    """Each step as a decode step does it: rotation, write and attention, the plan apart."""
    times = [_time_shared(device, shape, *case) for case in ((0, 0), (shared, 0), (shared, shared))]
    return (
        f"{shape.model:8} {shape.sequences:5} {shared:7} {shape.context:7} {times[0][0]:9.2f} {times[1][0]:9.2f} "
        f"{times[2][0]:9.2f} {times[1][0] / times[2][0]:6.2f} {times[1][1]:8.2f} {times[2][1]:8.2f}"
    )


def _time_shared(device: CudaDevice, shape: Shape, shared: int, together: int) -> tuple[float, float]:
    """Of a layer and of the plan: ``shared`` tokens are in the same blocks, ``together`` attended to together."""
    device.weights.reset()
    device.context.begin_step()
    context, upload = device.context, partial(device.upload, device.weights)
    rng = np.random.default_rng(0)
    blocks, shared_blocks = -(-shape.context // BLOCK_TOKENS), shared // BLOCK_TOKENS
    order = rng.permutation(shape.sequences * blocks).astype(np.int32)
    tables = order.reshape(shape.sequences, blocks)
    tables[:, :shared_blocks] = tables[0, :shared_blocks]
    rows, positions = np.arange(shape.sequences), np.full(shape.sequences, shape.context - 1)
    slots = tables[rows, positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS
    contexts = positions + 1
    arrays = (rows, positions, slots, rows, np.arange(shape.sequences + 1), contexts, contexts, tables, rows)
    groups = np.zeros((MAX_GROUPS, 3), np.int32)
    groups[0] = 0, shape.sequences, together
    step = Step(
        *(upload(np.ascontiguousarray(array, np.int32)) for array in arrays),
        prefixes=PrefixGroups(upload(groups), upload(rows.astype(np.int32))) if together else None,
    )
    width = (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim
    qkv = upload(rng.standard_normal((shape.sequences, width), np.float32).astype(np.float16))
    content = cache_shape(order.size, BLOCK_TOKENS, shape.num_kv_heads, shape.head_dim)
    cache = LayerCache(*(_noise(device, content) for _ in "kv"))
    out = device.weights.allocate((shape.sequences, shape.num_heads * shape.head_dim), np.float16)
    frequencies = 1 / 10000 ** (np.arange(shape.head_dim // 2) / (shape.head_dim // 2))
    rope = Rope(upload(frequencies.astype(np.float32)[None]), "neox")
    heads = shape.num_heads, shape.num_kv_heads, shape.head_dim
    attention = Attention(*heads, scale=shape.head_dim**-0.5, window=shape.window)
    by = rotation(context, step.positions, rope, step.sequence_lengths, step.sequence_rows)
    plan = plan_attention(context, step, attention)

    def attend() -> None:
        rope_attention(context, qkv, by, attention, step, plan, out_cache=cache, out=out)

    def prepare() -> None:
        plan_attention(context, step, attention)

    return _time_us(device, attend), _time_us(device, prepare)


def _noise(device: CudaDevice, shape: tuple[int, ...]) -> DeviceArray:
    """The same 2 MB again and again, for arrays that are too large to be made on the host."""
    noise = device.pinned((1 << 20,), np.float16)
    noise[:] = np.random.default_rng(0).standard_normal(noise.size, np.float32)
    array = device.weights.allocate(shape, np.float16)
    for start in range(0, array.size, noise.size):
        count = min(noise.size, array.size - start)
        device.copy_to_device_async(view(array, start * 2, (count,), np.float16), noise[:count])
    device.synchronise()
    return array


def _time_us(device: CudaDevice, operation: Callable[[], object]) -> float:
    """Median time of one of 20 in a graph."""
    operation()

    def enqueue() -> None:
        for _ in range(LAYERS):
            operation()

    graph = device.capture(enqueue, "bench")
    graph.launch()
    device.synchronise()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(5):
            graph.launch()
        device.synchronise()
        times.append((time.perf_counter() - start) / 5 / LAYERS * 1e6)
    return float(np.median(times))


def main() -> None:
    device = open_device("cuda:0")
    assert isinstance(device, CudaDevice)
    device.allocate(
        MemoryPlan(weights=8 * GIB, kv_cache=0, scratch=GIB, step_buffers=0, graphs=GIB // 4, cuda_context=GIB // 4)
    )
    print(f"{device.description}: {' '.join(sys.argv[1:])}")
    if sys.argv[1:] == ["prefixes"]:
        print(
            f"{'model':8} {'seqs':>5} {'shared':>7} {'context':>7} {'own us':>9} {'same us':>9} {'once us':>9} "
            f"{'ratio':>6} {'plan us':>8} {'once us':>8}"
        )
        for shape, shared in PREFIXES:
            print(measure_prefix(device, shape, shared), flush=True)
        return
    print(
        f"{'model':8} {'seqs':>5} {'new':>5} {'context':>7} {'window':>6} {'cache':7} {'us/layer':>9} {'GB/s':>7} "
        f"{'TFLOP/s':>7} {'rope us':>9} {'plan us':>7} {'fused us':>9} {'GB/s':>7}"
    )
    for shape in SHAPES:
        if shape.model in (sys.argv[1:] or [shape.model]):
            for cache_format in (FLOAT16, Q8):
                print(measure(device, shape, cache_format), flush=True)


if __name__ == "__main__":
    main()
