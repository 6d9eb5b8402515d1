"""Models of a few kilobytes in the shape of the real ones, for tests that need a file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.bench.gemma_specs import gemma3
from tests.bench.llama_specs import llama3, qwen3moe
from tests.bench.make_model import write_model
from tests.bench.model_specs import ModelSpec, gpt_oss, phi3, qwen2

FAMILIES: dict[str, Callable[[], ModelSpec]] = {
    "qwen2": lambda: qwen2(2, hidden=128, ffn=256, heads=2, kv_heads=1, num_regular=300),
    "phi3": lambda: phi3(2, hidden=256, ffn=256, heads=4, num_regular=300, window=16, q4_0=False),
    "llama": lambda: llama3(2, hidden=256, ffn=256, heads=2, kv_heads=1, num_regular=300),
    "qwen3moe": lambda: qwen3moe(2, hidden=256, ffn=256, heads=2, kv_heads=1, experts=6, used=3, num_regular=300),
    "gemma3": lambda: gemma3(6, hidden=256, ffn=256, heads=2, kv_heads=1, num_regular=300),
    "gpt-oss": lambda: gpt_oss(2, hidden=64, ffn=32, heads=2, kv_heads=1, experts=4, used=2, num_regular=300),
}


def write_tiny(family: str, path: Path) -> Path:
    """Write the family's tiny model to ``path``."""
    write_model(FAMILIES[family](), path)
    return path


def write_one_kernel(path: Path, num_regular: int = 300) -> Path:
    """Write a model to ``path`` that runs all its layers in one kernel: they are as large as Qwen2.5-0.5B's.

    With 17,000 regular tokens so is its head.
    """
    write_model(qwen2(2, hidden=896, ffn=4864, heads=14, kv_heads=2, num_regular=num_regular), path)
    return path


def write_wide(path: Path, num_regular: int = 300) -> Path:
    """Write a model to ``path`` of whose tokens one runs in one kernel: its layers are as large as Phi-3-mini's."""
    write_model(phi3(2, hidden=3072, ffn=8192, heads=32, num_regular=num_regular, window=2047, q4_0=False), path)
    return path
