"""worker.model.config: every key is checked, and errors name it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orcd.errors import ModelLoadFailed
from tests.bench.make_model import write_model
from tests.worker.model.tiny import FAMILIES
from worker.model.config import Architecture, ModelConfig, read_config
from worker.model.gguf import open_gguf
from worker.model.registry import read_model_config


def config_with(tmp_path: Path, family: str = "qwen2", **changes: Any) -> ModelConfig:
    """The tiny model's configuration with some keys changed (``__`` for a dot) or, if None, left out."""
    spec = FAMILIES[family]()
    changed = {key.replace("__", "."): value for key, value in changes.items()}
    keys = {key: value for key, value in {**spec.keys, **changed}.items() if value is not None}
    write_model(replace(spec, keys=keys), tmp_path / "model.gguf")
    return read_model_config(open_gguf(tmp_path / "model.gguf"))


def test_a_dense_model_is_described(tmp_path: Path) -> None:
    config = config_with(tmp_path)
    assert (config.architecture, config.num_layers, config.hidden, config.intermediate) == ("qwen2", 2, 128, 256)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (2, 1, 64)
    assert (config.vocab_size, config.context_length, config.sliding_window) == (593, 32768, 0)
    assert (config.num_experts, config.rope.num_dimensions, config.rope.base) == (0, 64, 1e6)
    assert (config.rope.scaling, config.rope.attention_factor) == ("none", None)
    assert (config.query_width, config.kv_width) == (128, 64)


def test_experts_and_yarn_are_described(tmp_path: Path) -> None:
    config = config_with(tmp_path, "gpt-oss")
    assert (config.num_experts, config.num_experts_used, config.intermediate) == (4, 2, 32)
    assert (config.rope.scaling, config.rope.factor, config.rope.original_context_length) == ("yarn", 32.0, 4096)


def test_whoever_declares_experts_is_named_where_they_are_refused(tmp_path: Path) -> None:
    spec = FAMILIES["qwen2"]()
    write_model(replace(spec, keys={**spec.keys, "expert_count": 8}), tmp_path / "model.gguf")
    declared = {
        "qwen2": Architecture(),
        "one": Architecture(experts="required"),
        "two": Architecture(experts="allowed"),
    }
    with pytest.raises(ModelLoadFailed, match="is 8: experts are supported for one, two only"):
        read_config(open_gguf(tmp_path / "model.gguf"), "qwen2", declared)


@pytest.mark.parametrize(
    ("family", "changes", "problem"),
    [
        ("qwen2", {"block_count": None}, "qwen2.block_count is missing"),
        ("qwen2", {"block_count": "2"}, "qwen2.block_count is '2'"),
        ("qwen2", {"block_count": 2.0}, "qwen2.block_count is 2.0"),
        ("qwen2", {"block_count": 0}, "from 1 to 4096"),
        ("qwen2", {"embedding_length": 2**31}, "embedding_length"),
        ("qwen2", {"context_length": 0}, "context_length"),
        ("qwen2", {"attention__head_count": 3}, "head_count is 3, which does not divide embedding_length 128"),
        ("qwen2", {"attention__head_count_kv": 0}, "head_count_kv"),
        ("gpt-oss", {"attention__head_count_kv": 3}, "does not divide 2 heads"),
        ("gpt-oss", {"attention__value_length": 32}, "keys and values must have one length"),
        ("gpt-oss", {"expert_used_count": 5}, "expert_used_count is 5"),
        ("gpt-oss", {"expert_count": 0}, "expert_count is 0"),
        ("qwen2", {"expert_count": 8}, "expert_count is 8"),
        ("qwen2", {"attention__layer_norm_rms_epsilon": float("nan")}, "epsilon is nan"),
        ("qwen2", {"rope__freq_base": 0.0}, "freq_base"),
        ("qwen2", {"rope__freq_base": float("inf")}, "freq_base is inf"),
        ("qwen2", {"rope__scaling__type": "spiral"}, "rope.scaling.type is 'spiral'; known are"),
        ("phi3", {"rope__dimension_count": 7}, "come in pairs"),
        ("phi3", {"rope__dimension_count": 128}, "dimension_count"),
        ("qwen2", {"vocab_size": 592}, "vocab_size is not 593"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, family: str, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelLoadFailed, match=problem) as caught:
        config_with(tmp_path, family, **changes)
    assert "model.gguf" in caught.value.message


def test_the_vocabulary_must_fit_the_embedding(tmp_path: Path) -> None:
    spec = FAMILIES["qwen2"]()
    vocabulary = replace(spec.vocabulary, tokens=spec.vocabulary.tokens[:-1])
    write_model(replace(spec, vocabulary=vocabulary), tmp_path / "model.gguf")
    with pytest.raises(ModelLoadFailed, match=r"tokens has 592 tokens, but tensor .* 593 rows"):
        read_model_config(open_gguf(tmp_path / "model.gguf"))
