"""worker.model.rope_config: keys of the rotation, as different programs have written them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from orcd.errors import ModelLoadFailed
from tests.worker.model.test_config import config_with
from worker.model.gguf import GGUFFile
from worker.model.metadata_keys import MetadataKeys
from worker.model.rope_config import read_sliding_rope


@pytest.mark.parametrize(
    ("changes", "scaling", "factor"),
    [
        ({"rope__scale_linear": 4.0}, "linear", 4.0),
        ({"rope__scaling__factor": 2.0}, "linear", 2.0),
        ({"rope__scaling__factor": 2.0, "rope__scale_linear": 4.0}, "linear", 2.0),
        ({"rope__scaling__factor": 0.0, "rope__scale_linear": 0.0}, "none", 1.0),
        ({"rope__scaling__factor": 2.0, "rope__scaling__type": "none"}, "none", 2.0),
        ({"rope__scaling__factor": 2.0, "rope__scaling__type": "yarn"}, "yarn", 2.0),
    ],
)
def test_a_factor_without_a_type_is_linear(
    tmp_path: Path, changes: dict[str, Any], scaling: str, factor: float
) -> None:
    rope = config_with(tmp_path, **changes).rope
    assert (rope.scaling, rope.factor) == (scaling, factor)


def test_the_keys_of_yarn_are_read(tmp_path: Path) -> None:
    keys = {"attn_factor": 1.5, "yarn_ext_factor": 0.5, "yarn_log_multiplier": 0.75, "yarn_beta_fast": 16.0}
    rope = config_with(
        tmp_path,
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__attn_factor=1.25,
        **{f"rope__scaling__yarn_{key.removeprefix('yarn_')}": value for key, value in keys.items()},
    ).rope
    assert (rope.yarn_attention_factor, rope.yarn_extrapolation, rope.yarn_log_multiplier) == (1.5, 0.5, 0.75)
    assert (rope.attention_factor, rope.beta_fast, rope.beta_slow) == (1.25, 16.0, 1.0)
    assert config_with(tmp_path, rope__scaling__yarn_ext_factor=-1.0).rope.yarn_extrapolation == 1.0


def test_layers_with_a_window_may_have_a_rotation_of_their_own(tmp_path: Path) -> None:
    rope = config_with(tmp_path, rope__scaling__factor=4.0).rope

    def sliding(base: float | None, head_dim: int | None, **values: Any) -> Any:
        metadata = {f"a.rope.{key}": value for key, value in values.items()}
        return read_sliding_rope(MetadataKeys(GGUFFile(tmp_path, metadata, {}), "a"), rope, base, head_dim)

    assert sliding(None, 32) == sliding(1e4, None) == rope
    own = replace(rope, num_dimensions=32, base=1e4, scaling="none", factor=1.0)
    assert sliding(1e4, 32) == own
    assert sliding(1e4, 32, freq_base_swa=5e4, dimension_count_swa=8) == replace(own, num_dimensions=8, base=5e4)
    with pytest.raises(ModelLoadFailed, match=r"a\.rope\.dimension_count_swa is 7; rotated elements come in pairs"):
        sliding(1e4, 32, dimension_count_swa=7)


@pytest.mark.parametrize(
    ("family", "changes", "problem"),
    [
        ("qwen2", {"rope__freq_base": 0.0}, "freq_base"),
        ("qwen2", {"rope__freq_base": 1.0}, "freq_base is 1.0"),
        ("qwen2", {"rope__freq_base": float("inf")}, "freq_base is inf"),
        ("qwen2", {"rope__scaling__type": "spiral"}, "rope.scaling.type is 'spiral'; known are"),
        ("phi3", {"rope__dimension_count": 7}, "come in pairs"),
        ("phi3", {"rope__dimension_count": 128}, "dimension_count"),
        ("qwen2", {"rope__scaling__factor": 1e-9}, "rope.scaling.factor is 9.99.*e-10; it must be a number from 1e-06"),
        ("qwen2", {"rope__scaling__factor": -2.0}, "rope.scaling.factor is -2.0"),
        ("qwen2", {"rope__scaling__type": "longrope"}, "rope.scaling.type is longrope: its factors must be tensors"),
        ("qwen2", {"rope__scaling__yarn_ext_factor": 0.5}, "yarn_ext_factor is 0.5, but rope.scaling.type none"),
        ("qwen2", {"rope__scaling__yarn_log_multiplier": "1"}, "yarn_log_multiplier is '1'"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, family: str, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelLoadFailed, match=problem):
        config_with(tmp_path, family, **changes)
