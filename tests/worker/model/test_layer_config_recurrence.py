"""worker.model.layer_config: which layers are recurrent, and what they keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orcd.errors import ModelLoadFailed
from worker.model.gguf import GGUFFile
from worker.model.layer_config import Recurrence, RecurrentKind, read_recurrence, recurrent_layers
from worker.model.metadata_keys import MetadataKeys

DELTA_NET = {"conv_kernel": 4, "state_size": 16, "group_count": 2, "time_step_rank": 6, "inner_size": 48}


def keys(values: dict[str, Any]) -> MetadataKeys:
    metadata = {f"a.{key}": value for key, value in {"block_count": 5, **values}.items()}
    return MetadataKeys(GGUFFile(Path("m.gguf"), metadata, {}), "a")


def delta_net(**changes: Any) -> Recurrence:
    return read_recurrence(
        keys({f"ssm.{key}": value for key, value in (DELTA_NET | changes).items()}), "delta_net", 32, 99
    )


def test_a_delta_net_keeps_inputs_of_its_convolution_and_a_matrix_for_each_value_head() -> None:
    assert delta_net() == Recurrence(4, 2 * 2 * 16 + 48, 2, 6, 16, 8)
    assert delta_net().state_size == 3 * 112 + 6 * 16 * 8
    assert delta_net().projected_width == 112 + 48 + 2 * 6


def test_a_short_convolution_keeps_inputs_only() -> None:
    recurrence = read_recurrence(keys({"shortconv.l_cache": 3}), "short_convolution", 32, 99)
    assert (recurrence, recurrence.state_size) == (Recurrence(3, 32), 64)
    assert recurrence.projected_width == 3 * 32


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"group_count": 4}, r"a\.ssm\.group_count is 4, which does not divide 6 value heads"),
        ({"group_count": 0}, r"a\.ssm\.group_count is 0; it must be a whole number from 1"),
        ({"inner_size": 47}, r"a\.ssm\.inner_size is 47: it must be 6 \(ssm.time_step_rank\) times 1 to 4096"),
        ({"state_size": 5000}, r"a\.ssm\.state_size is 5000"),
        ({"conv_kernel": 65}, r"a\.ssm\.conv_kernel is 65"),
        ({"conv_kernel": "4"}, r"a\.ssm\.conv_kernel is '4'"),
    ],
)
def test_what_cannot_be_is_an_error_that_names_the_key(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelLoadFailed, match=problem):
        delta_net(**changes)


@pytest.mark.parametrize("missing", DELTA_NET)
def test_a_missing_key_is_named(missing: str) -> None:
    values = {f"ssm.{key}": value for key, value in DELTA_NET.items() if key != missing}
    with pytest.raises(ModelLoadFailed, match=rf"a\.ssm\.{missing} is missing"):
        read_recurrence(keys(values), "delta_net", 32, 99)


@pytest.mark.parametrize(
    ("kind", "values", "attending"),
    [
        ("delta_net", {}, [3]),
        ("delta_net", {"full_attention_interval": 2}, [1, 3]),
        ("delta_net", {"full_attention_interval": 1}, [0, 1, 2, 3]),
        (
            "delta_net",
            {"full_attention_interval": 2, "attention.recurrent_layers": [True, False, True, True, False]},
            [1],
        ),
        ("short_convolution", {"attention.head_count_kv": [0, 4, 0, 2, 0]}, [1, 3]),
    ],
)
def test_the_file_says_which_layers_have_attention(
    kind: RecurrentKind, values: dict[str, Any], attending: list[int]
) -> None:
    recurrent = recurrent_layers(keys(values), kind, 4, 99)
    assert [index for index, is_recurrent in enumerate(recurrent) if not is_recurrent] == attending


@pytest.mark.parametrize(
    ("kind", "values", "problem"),
    [
        ("delta_net", {"full_attention_interval": 5}, "full_attention_interval leaves none of the 4 layers"),
        ("delta_net", {"attention.recurrent_layers": [True] * 5}, r"attention\.recurrent_layers leaves none"),
        ("delta_net", {"attention.recurrent_layers": [True] * 4}, "recurrent_layers has 4 values for 5 layers"),
        ("delta_net", {"attention.recurrent_layers": 3}, "it must be an array of true and false"),
        ("short_convolution", {"attention.head_count_kv": [0] * 5}, r"attention\.head_count_kv leaves none"),
        ("short_convolution", {}, r"attention\.head_count_kv is missing"),
    ],
)
def test_without_attention_a_model_is_refused(kind: RecurrentKind, values: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelLoadFailed, match=problem):
        recurrent_layers(keys(values), kind, 4, 99)
