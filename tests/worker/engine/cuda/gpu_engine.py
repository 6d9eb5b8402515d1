"""Engines on a GPU for tests, of models of all families, and requests for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from kernels.devices.cuda import CudaDevice
from kernels.devices.dry_run import DryRunDevice
from kernels.devices.open import open_device
from tests.models.files import KIT, NOT_ON_GPU, SMALL
from tests.worker.tiny_model import write_tiny_model
from worker.contract import Add, Sampling
from worker.engine.engine import Engine
from worker.memory_plan import reserve
from worker.model.gguf import open_gguf
from worker.model.registry import assemble_model, load_model, read_model_config
from worker.model.weights import Weights
from worker.settings import Settings

ROOT = Path(__file__).parents[4]
OF_THE_KIT = ("qwen2-untied-q8_0", "llama-q4_k_m", "phi3-longrope-f16", "gpt2-q4_0", "gpt-oss-mxfp4")
MODELS = {
    "tiny": None,
    "haiku": ROOT / "tasks" / "demo" / "haiku-q4_k_m.gguf",
    **{name: path for name, path in SMALL.items() if not name.startswith(NOT_ON_GPU)},
    **{name: path for name, path in KIT.items() if name in OF_THE_KIT},
}
Q8 = ", q8"
CODED = "tiny", "haiku", "gemma2-q8_0", "gemma4-q4_0", "gpt-oss-mxfp4_moe", "phi3-q5_k_m"
MODELS |= {name + Q8: MODELS[name] for name in CODED}
NUM_BLOCKS = 400
SETTINGS = Settings(device="cuda:0", max_sequences=24, step_tokens=256, kv_block_tokens=16, vram_fraction=0.5)


@contextmanager
def open_planned(name: str, folder: Path) -> Iterator[Any]:
    """One of `MODELS` on a device of its own, which has memory for `SETTINGS` and `NUM_BLOCKS`."""
    path = MODELS[name] or write_tiny_model(folder / "tiny.gguf")
    device = open_device("cuda:0", vram_fraction=0.5, cache_type="q8" if name.endswith(Q8) else "f16")
    assert isinstance(device, CudaDevice)
    gguf = open_gguf(path)
    planned = DryRunDevice("cuda:0", cache_format=device.cache_format)
    block_bytes = assemble_model(read_model_config(gguf), Weights(gguf, planned), planned).bytes_per_block(16)
    reserve(gguf, device, replace(SETTINGS, model=str(path), kv_cache_bytes=NUM_BLOCKS * block_bytes))
    yield load_model(gguf, device, lambda _done, _total: None)
    device.close()


def engine(model: Any, *, num_blocks: int = NUM_BLOCKS, capture: bool = True, **options: Any) -> Engine:
    """A new engine in the memory of the last one."""
    model.device.kv_cache.reset()
    model.device.step_buffers.reset()
    settings = replace(SETTINGS, kv_cache_bytes=num_blocks * model.bytes_per_block(16), **options)
    return Engine(model, settings, capture=capture)


def traffic(model: Any) -> list[Add]:
    """Prompts of mixed lengths with a common beginning; greedy, sampled, constrained, with all that needs the host."""
    generator = np.random.default_rng(5)
    longest = min(model.config.context_length - 50, 150)
    common = generator.integers(0, model.config.vocab_size, longest).tolist()
    extras: list[dict[str, Any]] = [
        {"temperature": 0.0},
        {"temperature": 0.8, "top_p": 0.9},
        {"temperature": 0.7, "top_k": 20, "repetition_penalty": 1.2},
        {"temperature": 1.1, "min_p": 0.02},
        {"temperature": 0.0, "logprobs": 3, "frequency_penalty": 0.4},
        {"temperature": 1.0, "logit_bias": {5: 2.0, 7: -100.0}, "min_tokens": 6, "stop_token_ids": tuple(range(30))},
        {"temperature": 0.9, "logit_bias": {3: 100.0}, "bad_words": ((3,), (5,), *((at, at) for at in range(90)))},
    ]
    adds = []
    for number, length in enumerate(np.linspace(1, longest, 14).astype(int)):
        own = generator.integers(0, model.config.vocab_size, 4).tolist()
        sampling = Sampling(max_tokens=20 + number, seed=number, **extras[number % len(extras)])
        adds.append(Add(f"{'rrc'[number % 3]}{number}", (*common[:length], *own), sampling))
    return adds
