"""worker.model.layer_config: layers that differ, and keys that contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import pytest

from orcd.errors import ModelLoadFailed
from worker.model.gguf import open_gguf
from worker.model.layer_config import EQUAL_LAYERS, LayerConfig, LayerLimits, LayerPattern, read_layers
from worker.model.metadata_keys import MetadataKeys

DIFFERS = LayerPattern(full_interval=6, differs=True)
KEYS: dict[str, Any] = {
    "block_count": 6,
    "feed_forward_length": [8, 8, 8, 16, 16, 16],
    "attention.head_count_kv": [2, 2, 1, 2, 2, 1],
    "attention.sliding_window": 16,
    "attention.sliding_window_pattern": [True, True, False, True, True, False],
    "attention.key_length_swa": 32,
    "attention.shared_kv_layers": 3,
}


def layers_of(
    tmp_path: Path, pattern: LayerPattern, keys: dict[str, Any], recurrent: Sequence[bool] | None = None
) -> tuple[LayerConfig, ...]:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "test")
    for key, value in keys.items():
        (writer.add_array if isinstance(value, list) else writer.add_uint32)(f"test.{key}", value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    limits = LayerLimits(keys["block_count"], num_heads=4, max_width=1024, max_context=1024)
    metadata = MetadataKeys(open_gguf(tmp_path / "model.gguf"), "test")
    return read_layers(metadata, pattern, limits, 64, recurrent or [False] * keys["block_count"])


def test_layers_have_sizes_of_their_own_and_the_last_share_caches_of_their_kind(tmp_path: Path) -> None:
    sliding, full = (2, 32), (1, 64)
    layers = layers_of(tmp_path, DIFFERS, KEYS)
    assert [(layer.num_kv_heads, layer.head_dim) for layer in layers] == [sliding, sliding, full] * 2
    assert [layer.intermediate for layer in layers] == KEYS["feed_forward_length"]
    assert [layer.window for layer in layers] == [16, 16, 0] * 2
    assert [layer.cache_layer for layer in layers] == [0, 1, 2, 1, 1, 2]


@pytest.mark.parametrize(("interval", "full"), [(0, []), (2, [1, 3, 5]), (6, [5])])
def test_an_architecture_knows_which_layers_have_no_window(tmp_path: Path, interval: int, full: list[int]) -> None:
    keys = {"block_count": 6, "feed_forward_length": 8, "attention.head_count_kv": 2, "attention.sliding_window": 16}
    layers = layers_of(tmp_path, LayerPattern(full_interval=interval), keys)
    assert [index for index, layer in enumerate(layers) if not layer.window] == full


def test_equal_layers_need_no_window_and_have_as_many_kv_heads_as_heads(tmp_path: Path) -> None:
    layers = layers_of(tmp_path, EQUAL_LAYERS, {"block_count": 2, "feed_forward_length": 8})
    assert layers == tuple(LayerConfig(4, 64, 8, window=0, cache_layer=index) for index in range(2))


@pytest.mark.parametrize("pattern", [3, [True, True, False] * 2])
def test_which_layers_have_a_window_may_be_a_number_or_an_array(tmp_path: Path, pattern: int | list[bool]) -> None:
    keys = {"block_count": 6, "feed_forward_length": 8, "attention.head_count_kv": 2, "attention.sliding_window": 16}
    layers = layers_of(tmp_path, EQUAL_LAYERS, keys | {"attention.sliding_window_pattern": pattern})
    assert [layer.window for layer in layers] == [16, 16, 0] * 2


@pytest.mark.parametrize("kv_heads", [2, [7, 2, 0, 2]])
def test_recurrent_layers_have_no_window_and_no_keys_whatever_the_file_says(
    tmp_path: Path, kv_heads: int | list[int]
) -> None:
    keys = {"block_count": 4, "feed_forward_length": 8, "attention.sliding_window": 16}
    layers = layers_of(tmp_path, EQUAL_LAYERS, keys | {"attention.head_count_kv": kv_heads}, [True, False] * 2)
    assert [(layer.recurrent, layer.kv_width, layer.window) for layer in layers] == [
        (True, 0, 0),
        (False, 128, 16),
    ] * 2
    with pytest.raises(ModelLoadFailed, match=r"attention\.head_count_kv is 0, which does not divide 4 heads"):
        layers_of(tmp_path, EQUAL_LAYERS, keys | {"attention.head_count_kv": [2, 2, 2, 0]}, [True, False] * 2)


def test_a_mixture_of_experts_need_not_say_how_wide_another_feed_forward_is(tmp_path: Path) -> None:
    keys = {"block_count": 2, "attention.head_count_kv": 2}
    layers = layers_of(tmp_path, EQUAL_LAYERS, keys | {"expert_feed_forward_length": 24})
    assert [layer.intermediate for layer in layers] == [24, 24]
    with pytest.raises(ModelLoadFailed, match=r"test\.feed_forward_length is missing"):
        layers_of(tmp_path, EQUAL_LAYERS, keys)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"attention.head_count_kv": [2, 2, 3, 2, 2, 1]}, "attention.head_count_kv is 3"),
        ({"attention.head_count_kv": [2, 2, 1, 2, 4, 1]}, "attention.head_count_kv differs between layers 1 and 4"),
        ({"attention.value_length_swa": 16}, "attention.value_length_swa is not 32"),
        ({"attention.shared_kv_layers": 4}, "attention.shared_kv_layers leaves layer 2"),
        ({"attention.sliding_window_pattern": [True]}, "attention.sliding_window_pattern has 1 values"),
    ],
)
def test_what_contradicts_itself_is_an_error_that_names_the_key(
    tmp_path: Path, changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ModelLoadFailed, match=problem):
        layers_of(tmp_path, DIFFERS, KEYS | changes)
