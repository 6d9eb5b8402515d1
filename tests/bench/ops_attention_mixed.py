"""Time of attention where contexts differ widely: of steps that only decode, and beside prompts.

    python -m tests.bench.ops_attention_mixed [MODEL ...]

Microseconds of one layer (median of replayed graphs of 20 layers), for the shapes of real models. Contexts are of 160
to 3,128 tokens, or all of their mean. Steps with prompts are without rotation and write. The last column is a digest of
the result, which has the same bits whoever computes what.
"""

from __future__ import annotations

import hashlib
import sys
from functools import partial

import numpy as np
from msgspec.structs import replace

from kernels.batch import LayerCache, Step
from kernels.devices.cuda import CudaDevice
from kernels.devices.open import open_device
from kernels.ops.attention import cache_shape, paged_attention, rope_attention
from kernels.ops.attention_plan import plan_attention
from kernels.ops.rope import rotation
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.memory import MemoryPlan
from kernels.weights.parameters import Attention, Rope
from tests.bench.ops_attention import BLOCK_TOKENS, GIB, _noise, _time_us

HEADS = {"Qwen": (14, 2, 64), "Phi-3": (32, 32, 96), "gpt-oss": (64, 8, 64), "Llama": (32, 8, 128)}
COUNTS = {"Qwen": (64, 96, 128, 192, 256, 512), "Phi-3": (64, 172), "gpt-oss": (64, 256), "Llama": (64, 256)}
CONTEXTS = (160, 3128)
PROMPTS = (2900, 1500, 800, 2000, 600)


def measure(device: CudaDevice, heads: tuple[int, int, int], contexts: list[int], prompts: tuple[int, ...]) -> str:
    """A step of a token each behind ``contexts``, and of whole ``prompts``."""
    device.weights.reset()
    device.context.begin_step()
    context, upload = device.context, partial(device.upload, device.weights)
    num_heads, num_kv_heads, head_dim = heads
    lengths, counts = np.array([*contexts, *prompts]), np.array([*np.ones_like(contexts), *prompts])
    rows = np.repeat(np.arange(lengths.size), counts)
    starts = np.concatenate([[0], np.cumsum(counts)])
    positions = np.arange(starts[-1]) - starts[rows] + (lengths - counts)[rows]
    blocks = -(-lengths // BLOCK_TOKENS)
    tables = np.zeros((lengths.size, blocks.max()), np.int64)
    order, first = np.random.default_rng(0).permutation(blocks.sum()), np.cumsum(blocks) - blocks
    for row, count in enumerate(blocks):
        tables[row, :count] = order[first[row] : first[row] + count]
    slots = tables[rows, positions // BLOCK_TOKENS] * BLOCK_TOKENS + positions % BLOCK_TOKENS
    arrays = (rows, positions, slots, rows, starts, lengths, lengths, tables, starts[1:] - 1)
    step = Step(*(upload(np.ascontiguousarray(array, np.int32)) for array in arrays))
    step = replace(step, has_long_context=True)
    values = np.random.default_rng(0).standard_normal(1 << 16, np.float32).astype(np.float16)
    qkv = upload(np.resize(values, (rows.size, (num_heads + 2 * num_kv_heads) * head_dim)))
    shape = cache_shape(order.size, BLOCK_TOKENS, num_kv_heads, head_dim)
    cache = LayerCache(_noise(device, shape), _noise(device, shape))
    out = device.weights.allocate((rows.size, num_heads * head_dim), np.float16)
    frequencies = 1 / 10000 ** (np.arange(head_dim // 2) / (head_dim // 2))
    rope = Rope(upload(frequencies.astype(np.float32)[None]), "neox")
    attention = Attention[DeviceArray](*heads, scale=head_dim**-0.5)
    by = rotation(context, step.positions, rope, step.sequence_lengths, step.sequence_rows)
    plan = plan_attention(context, step, attention)

    def attend() -> None:
        if prompts:
            paged_attention(context, qkv, cache, attention, step, plan, out=out)
        else:
            rope_attention(context, qkv, by, attention, step, plan, out_cache=cache, out=out)

    us = _time_us(device, attend)
    digest = hashlib.sha256(device.download(out).tobytes()).hexdigest()[:8]
    read_bytes = 4 * num_kv_heads * head_dim * sum(contexts)
    return f"{us:9.1f} {read_bytes / us / 1e3:7.0f} {digest}"


def main() -> None:
    device = open_device("cuda:0")
    assert isinstance(device, CudaDevice)
    device.allocate(
        MemoryPlan(weights=12 * GIB, kv_cache=0, scratch=GIB, step_buffers=0, graphs=GIB // 4, cuda_context=GIB // 4)
    )
    print(f"{device.description}\n{'model':8} {'rows':>5} {'contexts':>9} {'prompts':>8} {'us':>9} {'GB/s':>7}")
    for model in sys.argv[1:] or HEADS:
        for count in COUNTS[model]:
            contexts = np.random.default_rng(count).integers(*CONTEXTS, count, endpoint=True).tolist()
            equal = [sum(contexts) // count] * count
            for name, lengths, prompts in (("equal", equal, ()), ("mixed", contexts, ()), ("mixed", contexts, PROMPTS)):
                line = measure(device, HEADS[model], lengths, prompts)
                print(f"{model:8} {count:5} {name:>9} {sum(prompts):8} {line}", flush=True)


if __name__ == "__main__":
    main()
