"""worker.model.rope_scaling against numbers of Hugging Face's ``modeling_rope_utils``."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from tests.worker.model.tiny import write_tiny
from worker.model.config import ModelConfig
from worker.model.gguf import open_gguf
from worker.model.registry import read_model_config
from worker.model.rope_config import RopeConfig
from worker.model.rope_scaling import long_rope, plain_rope

PLAIN = RopeConfig(
    num_dimensions=64,
    base=150000.0,
    scaling="none",
    factor=32.0,
    original_context_length=4096,
    attention_factor=None,
    beta_fast=32.0,
    beta_slow=1.0,
    yarn_attention_factor=None,
    yarn_extrapolation=1.0,
    yarn_log_multiplier=0.0,
)


@pytest.fixture
def config(tmp_path: Path) -> ModelConfig:
    return replace(read_model_config(open_gguf(write_tiny("qwen2", tmp_path / "m.gguf"))), rope=PLAIN)


def test_unscaled_frequencies_fall_geometrically(config: ModelConfig) -> None:
    rope = plain_rope(config, "neox", None, truncate=True)
    assert rope.attention_factor == 1.0
    np.testing.assert_allclose(rope.inverse_frequencies[0, [0, 16, 31]], [1, 150000**-0.5, 150000 ** (-31 / 32)], 1e-6)


def test_linear_scaling_and_factors_divide_frequencies(config: ModelConfig) -> None:
    unscaled = plain_rope(config, "neox", None, truncate=True).inverse_frequencies
    linear = replace(config, rope=replace(PLAIN, scaling="linear", factor=4.0))
    factors = np.linspace(1, 8, 32).astype(np.float32)
    scaled = plain_rope(linear, "normal", factors, truncate=True)
    np.testing.assert_allclose(scaled.inverse_frequencies[0], unscaled[0] / 4 / factors, rtol=1e-6)


def test_yarn_interpolates_slow_dimensions_and_leaves_fast_ones(config: ModelConfig) -> None:
    unscaled = plain_rope(config, "neox", None, truncate=True).inverse_frequencies[0]
    yarn = replace(config, rope=replace(PLAIN, scaling="yarn"))
    for truncate, low, high in ((True, 8, 18), (False, 8.0927, 17.3980)):
        rope = plain_rope(yarn, "neox", None, truncate=truncate)
        share = np.clip((np.arange(32) - low) / (high - low), 0, 1)
        np.testing.assert_allclose(rope.inverse_frequencies[0], unscaled * (1 - share + share / 32), rtol=1e-4)
        assert rope.attention_factor == pytest.approx(1.3465735)


def test_yarn_blends_as_much_as_the_file_says(config: ModelConfig) -> None:
    linear = plain_rope(replace(config, rope=replace(PLAIN, scaling="linear")), "neox", None, truncate=True)
    whole = plain_rope(replace(config, rope=replace(PLAIN, scaling="yarn")), "neox", None, truncate=True)
    half = plain_rope(
        replace(config, rope=replace(PLAIN, scaling="yarn", yarn_extrapolation=0.5)), "neox", None, truncate=True
    )
    none = plain_rope(
        replace(config, rope=replace(PLAIN, scaling="yarn", yarn_extrapolation=0.0)), "neox", None, truncate=True
    )
    np.testing.assert_array_equal(none.inverse_frequencies, linear.inverse_frequencies)
    assert none.attention_factor == 1.0 and half.attention_factor == whole.attention_factor
    mean = (linear.inverse_frequencies + whole.inverse_frequencies) / 2
    np.testing.assert_allclose(half.inverse_frequencies, mean, rtol=1e-6)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 0.1 * math.log(32) + 1),
        ({"yarn_log_multiplier": 1.0}, 1.0),
        ({"yarn_log_multiplier": 0.5}, (0.1 * math.log(32) + 1) / (0.05 * math.log(32) + 1)),
        ({"yarn_attention_factor": 1.25, "yarn_log_multiplier": 1.0}, 1.25),
        ({"yarn_attention_factor": 1.0}, 1.0),
        ({"yarn_attention_factor": 0.878}, 0.1 * math.log(32) + 1),
        ({"attention_factor": 1.0}, 0.1 * math.log(32) + 1),
        ({"attention_factor": 1.5, "yarn_attention_factor": 2.0}, 3.0),
        ({"factor": 0.5}, 1.0),
    ],
)
def test_yarns_attention_factor_is_what_the_keys_make_of_it(
    config: ModelConfig, changes: dict[str, float], expected: float
) -> None:
    yarn = replace(config, rope=replace(PLAIN, scaling="yarn", **changes))
    assert plain_rope(yarn, "neox", None, truncate=True).attention_factor == pytest.approx(expected)


def test_longrope_has_two_sets_and_its_own_attention_factor(config: ModelConfig) -> None:
    unscaled = plain_rope(config, "neox", None, truncate=True).inverse_frequencies[0]
    long = replace(config, context_length=131072, rope=replace(PLAIN, scaling="longrope"))
    short_factors, long_factors = (np.full(32, factor, np.float32) for factor in (1.5, 20))
    rope = long_rope(long, short_factors, long_factors)
    np.testing.assert_allclose(rope.inverse_frequencies, [unscaled / 1.5, unscaled / 20], rtol=1e-6)
    assert rope.attention_factor == pytest.approx(math.sqrt(1 + math.log(32) / math.log(4096)))
    given = replace(long, rope=replace(long.rope, attention_factor=1.19))
    assert long_rope(given, short_factors, long_factors).attention_factor == 1.19
