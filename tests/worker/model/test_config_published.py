"""worker.model.config: keys as published files have them, all of the architecture's, are read as they are meant.

They are what llama.cpp lists of such files and what its converter writes; names, tokenizers and the like are left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from worker.model.config import ModelConfig, Scales
from worker.model.gguf import GGUFFile
from worker.model.registry import read_model_config


def keys(blocks: int, context: int, width: int, ffn: Any, heads: int, kv_heads: Any, eps: float) -> dict[str, Any]:
    """Those that every file has."""
    return {
        "block_count": blocks,
        "context_length": context,
        "embedding_length": width,
        "feed_forward_length": ffn,
        "attention.head_count": heads,
        "attention.head_count_kv": kv_heads,
        "attention.layer_norm_rms_epsilon": eps,
    }


def head(length: int) -> dict[str, Any]:
    return {"attention.key_length": length, "attention.value_length": length}


GEMMA4 = {
    "rope.freq_base": 1e6,
    "rope.freq_base_swa": 1e4,
    "rope.dimension_count": 512,
    "rope.dimension_count_swa": 256,
    "final_logit_softcapping": 30.0,
    "attention.key_length_swa": 256,
    "attention.value_length_swa": 256,
    **head(512),
}
YARN = {
    "rope.scaling.type": "yarn",
    "rope.scaling.factor": 16.0,
    "rope.scaling.original_context_length": 16384,
    "rope.scaling.yarn_beta_fast": 32.0,
    "rope.scaling.yarn_beta_slow": 1.0,
    "rope.scaling.yarn_log_multiplier": 1.0,
}
GRANITE = {"attention.scale": 0.0078125, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 16.0}
MAMBA = {"conv_kernel": 4, "state_size": 256, "group_count": 1, "inner_size": 5120, "time_step_rank": 80}

FILES: Mapping[str, tuple[str, int, dict[str, Any]]] = {
    "Llama-3.2-3B": (
        "llama",
        128256,
        keys(28, 131072, 3072, 8192, 24, 8, 1e-5)
        | head(128)
        | {"rope.dimension_count": 128, "rope.freq_base": 5e5, "vocab_size": 128256},
    ),
    "Mistral-Small-3.2-24B": (
        "llama",
        131072,
        keys(40, 131072, 5120, 32768, 32, 8, 1e-5)
        | head(128)
        | {"rope.dimension_count": 128, "rope.freq_base": 1e9, "vocab_size": 131072},
    ),
    "Ministral-3-8B": (
        "mistral3",
        131072,
        keys(34, 262144, 4096, 14336, 32, 8, 1e-5)
        | head(128)
        | YARN
        | {"rope.dimension_count": 128, "rope.freq_base": 1e6, "attention.temperature_scale": 0.1},
    ),
    "phi-4": (
        "phi3",
        100352,
        keys(40, 16384, 5120, 17920, 40, 10, 1e-5)
        | {"rope.dimension_count": 128, "rope.freq_base": 25e4, "attention.sliding_window": 0}
        | {"rope.scaling.original_context_length": 16384},
    ),
    "Phi-4-mini": (
        "phi3",
        200064,
        keys(32, 131072, 3072, 8192, 24, 8, 1e-5)
        | {"rope.dimension_count": 96, "rope.freq_base": 1e4, "attention.sliding_window": 262144}
        | {"rope.scaling.original_context_length": 4096, "rope.scaling.attn_factor": 1.190238},
    ),
    "granite-3.3-8b": (
        "granite",
        49159,
        keys(40, 131072, 4096, 12800, 32, 8, 1e-5)
        | GRANITE
        | {"rope.dimension_count": 128, "rope.freq_base": 1e7, "vocab_size": 49159},
    ),
    "granite-4.0-micro": (
        "granite",
        100352,
        keys(40, 131072, 2560, 8192, 40, [8] * 40, 1e-5)
        | {"attention.scale": 0.015625, "embedding_scale": 12.0, "residual_scale": 0.22, "logit_scale": 10.0}
        | {f"ssm.{name}": size for name, size in MAMBA.items()}
        | {"expert_count": 0, "expert_used_count": 0, "expert_shared_feed_forward_length": 8192}
        | {"rope.dimension_count": 64, "rope.freq_base": 1e7, "rope.scaling.finetuned": True, "vocab_size": 100352},
    ),
    "SmolLM3-3B": (
        "smollm3",
        128256,
        keys(36, 65536, 2048, 11008, 16, 4, 1e-6)
        | {"rope.dimension_count": 128, "rope.freq_base": 5e6, "vocab_size": 128256},
    ),
    "GLM-4-32B-0414": (
        "glm4",
        151552,
        keys(61, 32768, 6144, 23040, 48, 2, 1e-5) | head(128) | {"rope.dimension_count": 64, "rope.freq_base": 1e4},
    ),
    "gemma-3-12b": (
        "gemma3",
        262208,
        keys(48, 131072, 3840, 15360, 16, 8, 1e-6)
        | head(256)
        | {"rope.freq_base": 1e6, "rope.scaling.type": "linear", "rope.scaling.factor": 8.0}
        | {"attention.sliding_window": 1024},
    ),
    "gemma-4-E2B": (
        "gemma4",
        262144,
        keys(35, 131072, 1536, [6144] * 15 + [12288] * 20, 8, 1, 1e-6)
        | GEMMA4
        | {"attention.sliding_window": 512, "attention.sliding_window_pattern": [True, True, True, True, False] * 7}
        | {"attention.shared_kv_layers": 20, "embedding_length_per_layer_input": 256},
    ),
    "gemma-4-26B-A4B": (
        "gemma4",
        262144,
        keys(30, 262144, 2816, 2112, 16, [8, 8, 8, 8, 8, 2] * 5, 1e-6)
        | GEMMA4
        | {"attention.sliding_window": 1024, "attention.sliding_window_pattern": ([True] * 5 + [False]) * 5}
        | {"attention.shared_kv_layers": 0, "embedding_length_per_layer_input": 0}
        | {"expert_count": 128, "expert_used_count": 8, "expert_feed_forward_length": 704},
    ),
    "Qwen3-30B-A3B": (
        "qwen3moe",
        151936,
        keys(48, 40960, 2048, 6144, 32, 4, 1e-6)
        | head(128)
        | {"rope.freq_base": 1e6, "expert_count": 128, "expert_used_count": 8, "expert_feed_forward_length": 768},
    ),
    "Qwen3-Coder-480B-A35B": (
        "qwen3moe",
        151936,
        keys(62, 262144, 6144, 8192, 96, 8, 1e-6)
        | head(128)
        | {"rope.freq_base": 1e7, "expert_count": 160, "expert_used_count": 8, "expert_feed_forward_length": 2560}
        | {"expert_shared_feed_forward_length": 0},
    ),
}


def config(name: str, **changes: Any) -> ModelConfig:
    architecture, vocab_size, said = FILES[name]
    metadata = {f"{architecture}.{key}": value for key, value in {**said, **changes}.items()}
    tensors: Any = {"token_embd.weight": SimpleNamespace(shape=(vocab_size, said["embedding_length"]))}
    if name == "Phi-4-mini":
        tensors["rope_factors_long.weight"] = SimpleNamespace(shape=(48,))
    return read_model_config(GGUFFile(Path(name), {"general.architecture": architecture, **metadata}, tensors))


@pytest.mark.parametrize("name", FILES)
def test_its_sizes_are_those_of_the_file(name: str) -> None:
    _, vocab_size, said = FILES[name]
    read = config(name)
    assert (read.num_layers, read.hidden, read.vocab_size) == (
        said["block_count"],
        said["embedding_length"],
        vocab_size,
    )
    assert read.num_heads == said["attention.head_count"] and read.context_length == said["context_length"]
    assert read.norm_epsilon == said["attention.layer_norm_rms_epsilon"] and read.rope.base == said["rope.freq_base"]
    assert read.rotates


def test_windows_widths_and_caches_of_gemmas_layers() -> None:
    gemma3 = config("gemma-3-12b")
    assert [layer.window for layer in gemma3.layers] == [1024, 1024, 1024, 1024, 1024, 0] * 8
    assert (gemma3.rope.scaling, gemma3.rope.factor, gemma3.sliding_rope.base) == ("linear", 8.0, 1e4)
    assert gemma3.sliding_rope.factor == 1 and gemma3.head_dim == 256
    small = config("gemma-4-E2B")
    assert [layer.cache_layer for layer in small.layers[13:20]] == [13, 14, 13, 13, 13, 13, 14]
    assert [layer.intermediate for layer in small.layers[14:16]] == [6144, 12288] and small.layer_embedding == 256
    mixture = config("gemma-4-26B-A4B")
    assert [(layer.head_dim, layer.num_kv_heads, layer.window) for layer in mixture.layers[4:6]] == [
        (256, 8, 1024),
        (512, 2, 0),
    ]
    assert (mixture.num_experts, mixture.num_experts_used, mixture.intermediate) == (128, 8, 704)
    assert mixture.sliding_rope.num_dimensions == 256 and mixture.logit_softcap == 30


def test_scales_experts_and_rotations_of_the_others() -> None:
    assert config("granite-3.3-8b").scales == Scales(12.0, 0.22, 0.0078125, 16.0)
    micro = config("granite-4.0-micro")
    assert (micro.num_experts, micro.intermediate, micro.head_dim) == (0, 8192, 64)
    assert not config("granite-4.0-micro", **{"rope.scaling.finetuned": False}).rotates
    ministral = config("Ministral-3-8B")
    assert ministral.scales.temperature == 0.1 and ministral.rope.original_context_length == 16384
    assert (ministral.rope.scaling, ministral.rope.factor, ministral.rope.yarn_log_multiplier) == ("yarn", 16.0, 1.0)
    mini = config("Phi-4-mini")
    assert (mini.head_dim, mini.rope.num_dimensions, mini.rope.original_context_length) == (128, 96, 4096)
    assert mini.rope.attention_factor == 1.190238 and config("phi-4").sliding_window == 0
    assert (config("GLM-4-32B-0414").head_dim, config("GLM-4-32B-0414").rope.num_dimensions) == (128, 64)
    coder = config("Qwen3-Coder-480B-A35B")
    assert (coder.intermediate, coder.shared_intermediate, coder.renormalises_experts) == (2560, 0, True)
