"""Few sequences with their layers in one kernel and one by one: tokens a second, and microseconds of a forward pass.

    python -m tests.bench.one_kernel MODEL.gguf

The engine runs in this process. A forward pass is a graph of eight, of a token of each sequence behind so many others.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import replace

from kernels.batch import Step
from kernels.devices.cuda import CudaDevice
from kernels.devices.open import open_device
from worker.contract import Add, Sampling
from worker.engine.engine import Engine
from worker.memory_plan import reserve
from worker.model.gguf import open_gguf
from worker.model.registry import load_model
from worker.settings import Settings

PROMPT_TOKENS, OUTPUT_TOKENS, RUNS = 128, 256, 3
POSITIONS = (10, 255, 511, 1000, 2000, 4000)
PASSES, LAUNCHES = 8, 25
BLOCK_TOKENS = 16


def tokens_per_s(machine: Engine, prompts: list[tuple[int, ...]]) -> float:
    """From the last of the answers' first tokens to the last token of all."""
    for name, prompt in enumerate(prompts):
        machine.add(Add(str(name), prompt, Sampling(max_tokens=OUTPUT_TOKENS, temperature=0.0)), None)
    times: list[float] = []
    while machine.has_work:
        for output in machine.step():
            times += [time.perf_counter()] * len(output.ids)
    return (len(times) - len(prompts)) / (times[-1] - times[len(prompts) - 1])


def forward_us(device: CudaDevice, forward: Any, step: Step[Any], cache: Any) -> float:
    """Of one pass of the graph."""
    forward(step, cache)

    def passes() -> None:
        for _ in range(PASSES):
            forward(step, cache)

    graph = device.capture(passes, "bench")
    for _ in range(2):  # the first time warms up
        device.synchronise()
        start = time.perf_counter()
        for _ in range(LAUNCHES):
            graph.launch()
        device.synchronise()
    return (time.perf_counter() - start) / LAUNCHES / PASSES * 1e6


def step_at(device: CudaDevice, position: int, count: int, *, is_long: bool) -> Step[Any]:
    """A step of a token at ``position`` of each of ``count`` sequences, which have blocks of their own."""
    rows, num_blocks = np.arange(count), max(POSITIONS) // BLOCK_TOKENS + 1
    tables, positions = np.arange(count * num_blocks).reshape(count, -1), np.full(count, position)
    slots = tables[:, position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS
    lengths = positions + 1
    arrays = (rows + 5, positions, slots, rows, np.arange(count + 1), lengths, lengths, tables, rows)
    sent = [device.upload(device.step_buffers, array.astype(np.int32)) for array in arrays]
    return Step(*sent, states=None, prefixes=None, has_short_chunks=True, has_long_context=is_long)


def main(path: str) -> None:
    """Measure the model at ``path``."""
    gguf, device = open_gguf(Path(path)), open_device("cuda:0")
    assert isinstance(device, CudaDevice)
    settings = Settings(model=path, device="cuda:0", max_sequences=4, kv_cache_bytes=512 << 20)
    settings = reserve(gguf, device, settings)
    model = load_model(gguf, device, lambda _done, _total: None)
    generator, contexts = np.random.default_rng(7), model.one_kernel_contexts
    most = max(contexts, default=1)
    prompts = [
        tuple(prompt) for prompt in generator.integers(0, model.config.vocab_size, (most, PROMPT_TOKENS)).tolist()
    ]
    print(f"{device.description}: in one kernel, of so many sequences up to so many tokens: {contexts}")
    for name, limits in (("one by one", dict.fromkeys(contexts, 0)), ("in one kernel", contexts)):
        device.kv_cache.reset()
        device.step_buffers.reset()
        machine = Engine(replace(model, one_kernel_contexts=limits), settings)
        for count in range(1, most + 1):
            rates = [tokens_per_s(machine, prompts[:count]) for _ in range(RUNS + 1)][1:]
            print(f"{count} sequences, {name:14} {', '.join(f'{rate:,.0f}' for rate in rates)} tok/s")
    device.kv_cache.reset()
    device.step_buffers.reset()
    cache = model.allocate_cache(most * (max(POSITIONS) // BLOCK_TOKENS + 1), BLOCK_TOKENS)
    for count in contexts:
        for position in POSITIONS:
            steps = [step_at(device, position, count, is_long=is_long) for is_long in (True, False)]
            one_by_one, in_one = (forward_us(device, model.forward, step, cache) for step in steps)
            print(f"{count} at {position:5}: one by one {one_by_one:6.1f} us, in one kernel {in_one:6.1f} us")


if __name__ == "__main__":
    main(sys.argv[1])
