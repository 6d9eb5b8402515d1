"""worker.model.kv_cache: blocks of every layer, and how many bytes one takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from kernels.cache_format import FLOAT16, Q8
from kernels.devices.dry_run import DryRunDevice
from kernels.devices.open import open_device
from kernels.devices.protocol import Device
from kernels.ops.attention import cache_shape
from tests.models.files import SMALL
from tests.worker.model.tiny import FAMILIES, write_tiny
from worker.model.config import ModelConfig
from worker.model.gguf import open_gguf
from worker.model.kv_cache import allocate_cache, bytes_per_block, bytes_per_state, num_state_slots
from worker.model.registry import read_model_config
from worker.settings import Settings

DEVICES: dict[str, Callable[[], Device]] = {
    "cpu": lambda: open_device("cpu"),
    "cpu, q8": lambda: open_device("cpu", cache_type="q8"),
    "cuda": lambda: DryRunDevice("cuda:0"),
    "cuda, q8": lambda: DryRunDevice("cuda:0", cache_format=Q8),
}


@pytest.fixture(params=FAMILIES)
def config(request: pytest.FixtureRequest, tmp_path: Path) -> ModelConfig:
    return read_model_config(open_gguf(write_tiny(request.param, tmp_path / "tiny.gguf")))


@pytest.mark.parametrize("make_device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("block_tokens", [16, 32])
def test_a_cache_takes_as_many_bytes_as_were_planned_for_its_blocks(
    config: ModelConfig, make_device: Callable[[], Device], block_tokens: int
) -> None:
    device = make_device()
    cache = allocate_cache(config, device, 7, block_tokens)
    num_bytes = sum(array.nbytes for layer in cache.layers for array in layer.arrays())
    assert num_bytes == 7 * bytes_per_block(config, device.cache_format, block_tokens)


def test_each_layer_has_keys_and_values_of_its_own(config: ModelConfig) -> None:
    cache = allocate_cache(config, open_device("cpu"), 3, 16)
    assert len(cache.layers) == config.num_layers
    arrays = [array for layer in cache.layers for array in layer.arrays()]
    assert {array.shape for array in arrays} == {(3, 16, config.num_kv_heads, config.head_dim)}
    for number, array in enumerate(arrays):
        array[:] = number
    assert [float(np.unique(array).item()) for array in arrays] == list(range(len(arrays)))


def test_on_a_gpu_a_cache_is_laid_out_as_its_attention_reads_it(config: ModelConfig) -> None:
    cache = allocate_cache(config, DryRunDevice("cuda:0"), 3, 16)
    expected = cache_shape(3, 16, config.num_kv_heads, config.head_dim)
    assert {array.shape for layer in cache.layers for array in layer.arrays()} == {expected}
    assert {array.dtype for layer in cache.layers for array in layer.arrays()} == {np.dtype(np.float16)}


def test_in_8_bits_the_same_memory_holds_nearly_twice_the_tokens_of_a_gpu(config: ModelConfig) -> None:
    halves, eighths = (bytes_per_block(config, format_, 16) for format_ in (FLOAT16, Q8))
    assert halves / eighths == pytest.approx(2 * config.head_dim / (config.head_dim + 2))


@pytest.mark.parametrize(
    ("options", "state_bytes", "num_blocks", "num_slots"),
    [
        ({}, 0, 100, 0),  # no recurrent layers
        ({}, 1 << 28, 100, 8 + 4),
        ({}, 1 << 10, 100, 8 + 100),
        ({"state_cache_bytes": 1023}, 1 << 10, 100, 8),
        ({"step_tokens": 4, "state_cache_bytes": 1 << 10}, 1 << 10, 100, 4 + 1),
    ],
)
def test_there_is_a_state_slot_for_each_sequence_and_for_the_snapshots_that_fit(
    options: dict[str, int], state_bytes: int, num_blocks: int, num_slots: int
) -> None:
    settings = Settings(device="cpu", max_sequences=8, **options)
    assert num_state_slots(state_bytes, settings, num_blocks) == num_slots


@pytest.mark.parametrize("make_device", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize(("name", "attending", "recurrent"), [("qwen35-q4_k_m", 1, 1), ("qwen35moe-q4_0", 1, 2)])
def test_recurrent_layers_have_states_and_no_keys(
    name: str, attending: int, recurrent: int, make_device: Callable[[], Device]
) -> None:
    config, device = read_model_config(open_gguf(SMALL[name])), make_device()
    cache = allocate_cache(config, device, 7, 16, num_states=5)
    assert (len(cache.layers), len(cache.states)) == (attending, recurrent)
    assert sum(array.nbytes for layer in cache.layers for array in layer.arrays()) == 7 * bytes_per_block(
        config, device.cache_format, 16
    )
    assert sum(array.nbytes for state in cache.states for array in state) == 5 * bytes_per_state(config)
    assert {array.shape[0] for state in cache.states for array in state} == {5}


def test_without_recurrent_layers_there_are_no_states(config: ModelConfig) -> None:
    assert bytes_per_state(config) == 0
    assert allocate_cache(config, open_device("cpu"), 3, 16).states == ()
