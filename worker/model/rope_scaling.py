"""Rotary frequencies of a model: base, context extension, factors stored in the file.

The formulas are those of Hugging Face's ``modeling_rope_utils``, which are those of the papers: linear interpolation
(Chen et al., 2023), YaRN (Peng et al., 2023), longrope (Ding et al., 2024). Llama 3's scaling arrives as factors.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from kernels.weights.parameters import Pairing, Rope
from worker.model.config import ModelConfig
from worker.model.rope_config import RopeConfig

Float32 = NDArray[np.float32]


def plain_rope(config: ModelConfig, pairing: Pairing, factors: Float32 | None, *, truncate: bool) -> Rope[Float32]:
    """One set of frequencies: unscaled, linear or YaRN; ``factors`` [pairs] of the file divide them.

    ``truncate`` rounds YaRN's correction range to whole dimensions (the paper's code; gpt-oss does not).
    """
    rope = config.rope
    frequencies = _frequencies(rope)
    attention_factor = 1.0
    if rope.scaling == "linear":
        frequencies = frequencies / rope.factor
    elif rope.scaling == "yarn":
        frequencies = _yarn(rope, frequencies, truncate)
        attention_factor = _yarn_attention_factor(rope)
    if factors is not None:
        frequencies = frequencies / factors
    if rope.attention_factor is not None:
        attention_factor *= rope.attention_factor
    return Rope(frequencies.astype(np.float32)[None], pairing, attention_factor)


def long_rope(config: ModelConfig, short_factors: Float32, long_factors: Float32) -> Rope[Float32]:
    """Two sets of frequencies: 0 for sequences within the original context, 1 for longer ones."""
    rope = config.rope
    frequencies = _frequencies(rope) / np.stack([short_factors, long_factors])
    attention_factor = rope.attention_factor
    if attention_factor is None:
        extension = config.context_length / rope.original_context_length
        attention_factor = (
            math.sqrt(1 + math.log(extension) / math.log(rope.original_context_length)) if extension > 1 else 1.0
        )
    return Rope(frequencies.astype(np.float32), "neox", attention_factor, long_after=rope.original_context_length)


def _frequencies(rope: RopeConfig) -> NDArray[np.float64]:
    exponents = np.arange(0, rope.num_dimensions, 2, dtype=np.float64) / rope.num_dimensions
    return 1.0 / rope.base**exponents


def _yarn(rope: RopeConfig, frequencies: NDArray[np.float64], truncate: bool) -> NDArray[np.float64]:
    """Interpolate the slow dimensions, leave the fast ones, and blend in between."""

    def dimension_of(num_rotations: float) -> float:
        """Where a dimension turns ``num_rotations`` times over the original context."""
        wavelength = rope.original_context_length / (num_rotations * 2 * math.pi)
        return rope.num_dimensions * math.log(wavelength) / (2 * math.log(rope.base))

    low, high = dimension_of(rope.beta_fast), dimension_of(rope.beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.num_dimensions - 1)
    span = max(high - low, 0.001)
    kept_share = (1 - np.clip((np.arange(frequencies.size) - low) / span, 0, 1)) * rope.yarn_extrapolation
    blended: NDArray[np.float64] = frequencies / rope.factor * (1 - kept_share) + frequencies * kept_share
    return blended


def _yarn_attention_factor(rope: RopeConfig) -> float:
    """The paper's 0.1 ln s + 1, for DeepSeek's and Mistral's models divided by the same with a multiplier of ln s.

    The converter writes two keys of a ``config.json`` under one name: ``attention_factor``, which is used in place of
    the formula and like that is 1 or more, and ``attn_factor``, which Hugging Face and llama.cpp leave out: it is below
    1 in DeepSeek-R1-0528-Qwen3-8B.
    """
    if rope.yarn_attention_factor is not None and rope.yarn_attention_factor >= 1:
        return rope.yarn_attention_factor
    if rope.factor <= 1 or not rope.yarn_extrapolation:
        return 1.0
    logarithm = 0.1 * math.log(rope.factor)
    return (logarithm + 1) / (rope.yarn_log_multiplier * logarithm + 1)
