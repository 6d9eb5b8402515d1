"""kernels.devices.arena_device: what comes from which arena, with arenas at made-up addresses instead of a GPU's."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.cache_format import Q8
from kernels.devices.arena_device import ArenaDevice
from kernels.errors import OutOfDeviceMemory
from kernels.ops.attention import cache_shape
from kernels.runtime.gpu_spec import H100
from kernels.runtime.launcher import Context
from kernels.runtime.memory import ALIGNMENT, Arena

MIB = 1 << 20
WEIGHTS, KV_CACHE, STEP_BUFFERS, SCRATCH = (number * MIB for number in (1, 2, 3, 4))  # where each arena starts


@pytest.fixture
def device() -> ArenaDevice:
    """A device with 1 MiB for each use of memory."""
    device = ArenaDevice("cuda:0", H100, "a test's")
    device.use(
        Context(H100, arena=Arena(SCRATCH, MIB)),
        weights=Arena(WEIGHTS, MIB),
        kv_cache=Arena(KV_CACHE, MIB),
        step_buffers=Arena(STEP_BUFFERS, MIB),
    )
    return device


def test_each_use_of_memory_has_an_arena_of_its_own(device: ArenaDevice) -> None:
    starts = {
        WEIGHTS: device.store.vector(np.ones(4, np.float32)),
        KV_CACHE: device.layer_cache(4, 16, 2, 64).keys,
        STEP_BUFFERS: device.empty((4,), np.int32),
        SCRATCH: device.begin_step()((4,), np.float16),
    }
    assert [array.pointer // MIB * MIB for array in starts.values()] == list(starts)


def test_ops_and_weights_follow_the_device_to_its_memory(device: ArenaDevice) -> None:
    fresh = ArenaDevice("cuda:0", H100, "a test's")
    dry_ops, dry_store = fresh.ops, fresh.store
    fresh.use(device.context, weights=device.weights, kv_cache=device.kv_cache, step_buffers=device.step_buffers)
    assert fresh.ops is not dry_ops and fresh.store is not dry_store
    assert fresh.begin_step()((1,), np.int32).pointer == SCRATCH
    assert dry_store.vector(np.ones(4, np.float32)).pointer == 0


def test_a_step_starts_over_in_the_scratch_memory_and_nowhere_else(device: ArenaDevice) -> None:
    first = [device.begin_step()((100,), np.float32), device.empty((100,), np.float32)]
    second = [device.begin_step()((100,), np.float32), device.empty((100,), np.float32)]
    assert second[0].pointer == first[0].pointer
    assert second[1].pointer == first[1].pointer + -(-400 // ALIGNMENT) * ALIGNMENT


def test_a_layer_s_cache_is_float16_in_the_layout_of_attention(device: ArenaDevice) -> None:
    keys, values, scales = device.layer_cache(10, 32, 2, 64)
    for array in (keys, values):
        assert (array.shape, array.dtype) == (cache_shape(10, 32, 2, 64), np.dtype(np.float16))
    assert scales is None
    with pytest.raises(ValueError, match="cache blocks of 20 tokens"):
        device.layer_cache(10, 20, 2, 64)


def test_a_layer_s_cache_of_8_bits_is_codes_and_a_scale_for_each_head_of_a_token() -> None:
    device = ArenaDevice("cuda:0", H100, "a test's", Q8)
    device.use(Context(H100), weights=Arena(0, None), kv_cache=Arena(KV_CACHE, MIB), step_buffers=Arena(0, None))
    keys, values, scales = device.layer_cache(10, 32, 2, 64)
    assert scales is not None
    codes_bytes, scales_bytes = 10 * 2 * 32 * 64, 10 * 2 * 32 * 2
    assert {(array.shape, array.dtype) for array in (keys, values)} == {((10, 2, 32, 64), np.dtype(np.int8))}
    assert {(array.shape, array.dtype) for array in scales} == {((10, 2, 32), np.dtype(np.float16))}
    starts = [array.pointer - KV_CACHE for array in (keys, values, *scales)]
    assert starts == [0, codes_bytes, 2 * codes_bytes, 2 * codes_bytes + scales_bytes]


def test_a_layer_s_states_are_float32_beside_its_cache(device: ArenaDevice) -> None:
    device.layer_cache(10, 32, 2, 64)
    states = device.state_array(3, 4, 128, 128)
    assert (states.shape, states.dtype) == ((3, 4, 128, 128), np.dtype(np.float32))
    assert states.pointer == KV_CACHE + 2 * 10 * 32 * 2 * 64 * 2


def test_what_does_not_fit_is_refused_with_its_size(device: ArenaDevice) -> None:
    with pytest.raises(OutOfDeviceMemory) as caught:
        device.layer_cache(1000, 16, 8, 128)
    assert (caught.value.required_bytes, caught.value.available_bytes) == (1000 * 16 * 8 * 128 * 2, MIB)
