"""worker.model.config: every key is checked, and errors name it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from orcd.errors import ModelLoadFailed
from tests.bench.make_model import write_model
from tests.worker.model.tiny import FAMILIES
from worker.model.config import Architecture, ModelConfig, Scales, read_config
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


def test_blocks_that_predict_further_tokens_are_no_layers(tmp_path: Path) -> None:
    config = config_with(tmp_path, nextn_predict_layers=1)
    assert (config.num_layers, config.num_mtp_layers) == (1, 1)


def test_an_array_with_one_value_for_all_layers_is_that_value(tmp_path: Path) -> None:
    config = config_with(tmp_path, attention__head_count=[2, 2], feed_forward_length=[256, 256])
    assert (config.num_heads, config.intermediate) == (2, 256)


def test_scales_are_read_where_they_are_declared_and_0_is_none(tmp_path: Path) -> None:
    spec, path = FAMILIES["qwen2"](), tmp_path / "model.gguf"
    scales = {"embedding_scale": 12.0, "attention.scale": 0.5, "logit_scale": 0.0}
    write_model(replace(spec, keys={**spec.keys, **scales}), path)
    declared = {"qwen2": Architecture(keys=frozenset({*scales, "residual_scale"}))}
    assert read_config(open_gguf(path), "qwen2", declared).scales == Scales(embedding=12.0, attention=0.5)
    assert config_with(tmp_path).scales == Scales()
    write_model(replace(spec, keys={**spec.keys, "logit_scale": 1e-40}), path)
    with pytest.raises(ModelLoadFailed, match=r"logit_scale is .*e-41; it must be a number from 1e-06 to 1e\+06"):
        read_config(open_gguf(path), "qwen2", declared)


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
        ("qwen2", {"vocab_size": 592}, "vocab_size is not 593"),
        ("qwen2", {"nextn_predict_layers": 2}, "nextn_predict_layers is 2; .* from 0 to 1"),
        ("qwen2", {"attention__head_count": [2, 1]}, r"head_count is \[2, 1\]: it differs between layers"),
        ("qwen2", {"attention__head_count": [2, 2, 2]}, "head_count has 3 values for 2 layers"),
        ("qwen2", {"attention__scale": 0.5}, r"attention.scale \(0.5\) is not known for this architecture"),
        ("qwen2", {"rope__freq_base_swa": 1e4}, r"rope.freq_base_swa \(10000.0\) is not known"),
        ("gpt-oss", {"expert_shared_count": 1}, r"expert_shared_count \(1\) is not known"),
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
