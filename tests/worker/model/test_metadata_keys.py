"""worker.model.metadata_keys: values of all layers and of each, and the keys that nobody may pass over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orcd.errors import ModelLoadFailed
from worker.model.gguf import GGUFFile
from worker.model.metadata_keys import MetadataKeys


def keys(**values: Any) -> MetadataKeys:
    """Those of a file of three blocks (``__`` for a dot)."""
    metadata = {f"a.{key.replace('__', '.')}": value for key, value in {"block_count": 3, **values}.items()}
    return MetadataKeys(GGUFFile(Path("m.gguf"), metadata, {}), "a")


def test_an_array_of_one_value_counts_as_that_value() -> None:
    assert keys(heads=[4, 4, 4]).integer("heads", 1, 8) == 4
    assert keys(scale=[0.5, 0.5, 0.5]).number("scale", 0, 1) == 0.5


def test_a_value_for_each_layer_comes_from_an_array_or_from_one_number() -> None:
    assert keys(heads=[4, 0, 2]).integers("heads", 3, 0, 8) == (4, 0, 2)
    assert keys(heads=[4, 0, 2]).integers("heads", 2, 0, 8) == (4, 0)
    assert keys(heads=4).integers("heads", 2, 0, 8) == (4, 4)
    assert keys().integers("heads", 2, 0, 8, default=1) == (1, 1)
    assert keys(slides=[True, False, True]).flags("slides", 2) == (True, False)
    assert keys().flags("slides", 2) is None


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"heads": [4, 4]}, "m.gguf: metadata key a.heads has 2 values for 3 layers"),
        ({"heads": []}, "has 0 values for 3 layers"),
        ({"heads": [4, 4, 9]}, "is 9; it must be a whole number from 0 to 8"),
        ({"heads": [4, 4, "x"]}, "is 'x'; it must be a whole number"),
        ({"heads": [4, True, 4]}, "is True; it must be a whole number"),
        ({}, "a.heads is missing"),
    ],
)
def test_a_wrong_array_is_named(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelLoadFailed, match=problem):
        keys(**values).integers("heads", 3, 0, 8)


def test_a_flag_is_true_or_false_and_nothing_else() -> None:
    assert keys(norm=False).flag("norm", True) is False and keys().flag("norm", True) is True
    with pytest.raises(ModelLoadFailed, match=r"metadata key a.norm is 1; it must be true or false"):
        keys(norm=1).flag("norm", True)


@pytest.mark.parametrize("value", [True, [True, 1, True], "yes", [True, False]])
def test_flags_are_an_array_of_true_and_false(value: Any) -> None:
    with pytest.raises(ModelLoadFailed, match=r"a\.slides (is .*; it must be an array|has 2 values)"):
        keys(slides=value).flags("slides", 3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope__freq_base_swa", 10000.0),
        ("rope__dimension_sections", [8, 8, 8, 0]),
        ("rope__scaling__spiral", 1.0),
        ("attention__scale", 0.25),
        ("attention__causal", False),
        ("attention__sliding_window_pattern", [True, False, True]),
        ("expert_shared_count", 1),
        ("expert_gating_func", 2),
        ("expert_weights_norm", False),
        ("attn_logit_softcapping", 50.0),
        ("logit_scale", 16.0),
        ("ssm__state_size", 128),
        ("shortconv__l_cache", 3),
        ("full_attention_interval", 4),
        ("attention__scale", "0"),
    ],
)
def test_a_key_that_changes_numbers_and_that_nobody_reads_is_named(key: str, value: Any) -> None:
    name = key.replace("__", ".")
    with pytest.raises(ModelLoadFailed, match=rf"m.gguf: metadata key a\.{name} \(.*\) is not known for this arch"):
        keys(**{key: value}).check_all_known(frozenset())
    keys(**{key: value}).check_all_known({name})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention__causal", True),
        ("attention__scale", 0.0),
        ("logit_scale", 1.0),
        ("expert_shared_count", 0),
        ("rope__scaling__finetuned", False),
        ("tensor_data_layout", "Meta AI original pth"),
        ("features_length", 512),
    ],
)
def test_a_key_that_leaves_numbers_as_they_are_is_passed_over(key: str, value: Any) -> None:
    keys(**{key: value}).check_all_known(frozenset())


def test_a_factor_of_0_is_none() -> None:
    assert keys(scale=0.0).factor("scale", 2.0) == 0
    assert keys().factor("scale", 2.0) == 2
    with pytest.raises(ModelLoadFailed, match=r"a\.scale is 1e-09; it must be a number from 1e-06"):
        keys(scale=1e-9).factor("scale")


def test_whether_a_key_has_an_array_is_told() -> None:
    subject = keys(heads=[1, 2, 3], other=4)
    assert [subject.has_array(key) for key in ("heads", "other", "absent")] == [True, False, False]


def test_keys_of_others_are_not_looked_at() -> None:
    metadata = {"a.block_count": 3, "b.attention.scale": 0.5, "general.rope.x": 1}
    MetadataKeys(GGUFFile(Path("m.gguf"), metadata, {}), "a").check_all_known(frozenset())
