"""kernels.ops.layers.expert_plan: tiles hold every pair once, and what they hold changes no bit."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.ops.layers.expert_plan import plan_rows
from kernels.ops.layers.routed_matmul import STAYING_SIZES, multiply_expert_tiles
from kernels.ops.matmul import multiply_tiled
from kernels.ops.matmul_params import Epilogue, Product
from kernels.ops.matmul_tuning import routed_sizes
from tests.kernels.conftest import Download, Empty, Upload
from tests.kernels.ops.random_weights import random_weight, values_of
from tests.kernels.ops.test_matmul import load, relative

pytestmark = pytest.mark.gpu

NUM_EXPERTS, NUM_USED = 40, 3


def uneven_choice(num_tokens: int, rng: np.random.Generator, num_used: int = NUM_USED) -> np.ndarray:
    """Experts for each token: the first ones often, the last one never."""
    preferences = rng.normal(size=(num_tokens, NUM_EXPERTS)) - np.arange(NUM_EXPERTS) / 10
    preferences[:, -1] = -np.inf
    return np.argsort(-preferences, axis=1)[:, :num_used].astype(np.int32)


@pytest.mark.sanitize
@pytest.mark.parametrize(
    ("num_tokens", "num_used", "width"),
    [(5, 3, 2336), (64, 3, 2336), (1000, 3, 2336), (2000, 3, 2336), (600, 9, 4616), (4097, 1, 256)],
)
def test_every_pair_is_in_one_tile_of_its_expert_and_has_the_row_of_its_token(
    device: CudaDevice, upload: Upload, download: Download, num_tokens: int, num_used: int, width: int
) -> None:
    """Up to 4,096 pairs are sorted by one kernel, more by others; their rows may be too short for all of a block."""
    rng = np.random.default_rng(num_tokens)
    chosen, x = uneven_choice(num_tokens, rng, num_used), rng.normal(size=(num_tokens, width)).astype(np.float16)
    plan, rows = plan_rows(device.context, upload(chosen), upload(x), NUM_EXPERTS, (16, 96))
    places = download(plan.places)
    assert sorted(places) == list(range(chosen.size))
    assert np.array_equal(download(rows)[places], np.repeat(x, num_used, axis=0))
    expert_at = np.empty(chosen.size, np.int32)
    expert_at[places] = chosen.ravel()
    for tiles in (plan.gate_up, plan.down):
        held: list[int] = []
        entries = download(tiles.entries)[: download(tiles.num_tiles)[0]]
        assert -(-entries[0, 2] // 16) == -(-entries[:, 2].max() // 16), "the largest come first"
        for expert, first, count, _ in entries:
            assert 0 < count <= tiles.size and set(expert_at[first : first + count]) == {expert}
            held += range(first, first + count)
        assert sorted(held) == list(range(chosen.size))


@pytest.mark.sanitize("*-MXFP4")
@pytest.mark.parametrize("name", ["MXFP4", "Q4_K", "Q6_K", "Q8_0", "F16"])
@pytest.mark.parametrize(
    "shape", [(200, 768), (208, 768), (4096, 256)], ids=["several partitions", "whole tiles", "one partition"]
)
def test_tiles_of_every_size_give_the_same_bits(
    device: CudaDevice, upload: Upload, empty: Empty, download: Download, name: str, shape: tuple[int, int]
) -> None:
    rng, num_tokens, num_experts = np.random.default_rng(1), 560, 4
    weight = random_weight(name, (num_experts, *shape), rng, bias=True)
    unused = random_weight(name, (num_experts, 256, 256), rng)
    matrix = load(device, lambda store: store.experts(unused, unused, weight)).down
    x = rng.normal(size=(num_tokens, shape[1])).astype(np.float16)
    chosen = np.argsort(rng.normal(size=(num_tokens, num_experts)) - np.arange(num_experts), axis=1)[:, :2]
    values, bias = values_of(weight), np.asarray(weight.bias)
    expected = np.concatenate(
        [[x[i].astype(np.float64) @ values[e].T + bias[e] for e in chosen[i]] for i in range(num_tokens)]
    )
    sizes = routed_sizes(device.context.gpu, matrix)
    found = {}
    for size in sizes:
        plan, inputs = plan_rows(device.context, upload(chosen.astype(np.int32)), upload(x), num_experts, (size, size))
        out = empty((2 * num_tokens, shape[0]), np.float32)
        multiply_tiled(device.context, Product(inputs, matrix, out, Epilogue.STORE_FLOAT), plan.down)
        found[size] = download(out)[download(plan.places)]
    assert relative(found[16], expected) < 6e-4
    assert [size for size in sizes if not np.array_equal(found[size], found[16])] == []


@pytest.mark.sanitize
@pytest.mark.parametrize("clamps", [False, True])
def test_gated_tiles_as_wide_as_they_are_full_give_the_same_bits(
    device: CudaDevice, upload: Upload, empty: Empty, download: Download, clamps: bool
) -> None:
    """Of one partition, as those of the largest size are; every width that such a tile is multiplied in."""
    rng, num_experts, inner, width = np.random.default_rng(2), 6, 2048, 192
    gate, up = (random_weight("MXFP4", (num_experts, inner, width), rng, bias=True) for _ in "gu")
    down = random_weight("MXFP4", (num_experts, 64, inner), rng)
    (matrix,) = load(device, lambda store: store.experts(gate, up, down)).gate_up
    counts = [100, 150, 200, 250, 7, 300]
    chosen = rng.permutation(np.repeat(np.arange(num_experts), counts))[:, None].astype(np.int32)
    x = upload(rng.normal(size=(chosen.size, width)).astype(np.float16))
    epilogue = Epilogue.CLAMPED_SWIGLU if clamps else Epilogue.SWIGLU
    sizes = routed_sizes(device.context.gpu, matrix)
    found = {}
    for size in sizes:
        plan, inputs = plan_rows(device.context, upload(chosen), x, num_experts, (size, size))
        out = empty((chosen.size, inner), np.float16)
        multiply_tiled(device.context, Product(inputs, matrix, out, epilogue, alpha=1.702, limit=7.0), plan.gate_up)
        found[size] = download(out)[download(plan.places)]
    assert np.isfinite(found[16]).all() and found[16].astype(np.float64).std() > 0.1
    assert [size for size in sizes if not np.array_equal(found[size], found[16])] == []


@pytest.mark.sanitize("*-Q4_K")
@pytest.mark.parametrize("name", ["Q4_K", "Q6_K", "Q2_K", "IQ4_XS"])
@pytest.mark.parametrize(("gated", "shape"), [(True, (192, 1024)), (False, (208, 768)), (False, (4096, 256))])
def test_blocks_that_stay_give_the_same_bits(
    device: CudaDevice,
    upload: Upload,
    empty: Empty,
    download: Download,
    name: str,
    gated: bool,
    shape: tuple[int, int],
) -> None:
    """More tiles than there are blocks, of which some have few tokens, and one to several partitions."""
    if not device.context.gpu.has_wgmma:
        pytest.skip("for Hopper")
    rng, num_experts = np.random.default_rng(7), 24
    weight, unused = random_weight(name, (num_experts, *shape), rng), random_weight(name, (num_experts, 256, 256), rng)
    other = random_weight(name, (num_experts, *shape), rng)
    tensors = (weight, other, unused) if gated else (unused, unused, weight)
    experts = load(device, lambda store: store.experts(*tensors))
    matrix = experts.gate_up[0] if gated else experts.down
    counts = rng.integers(0, 400, num_experts)
    chosen = rng.permutation(np.repeat(np.arange(num_experts), counts))[:, None].astype(np.int32)
    x = upload(rng.normal(size=(chosen.size, shape[1])).astype(np.float16))
    epilogue = Epilogue.SWIGLU if gated else Epilogue.STORE_FLOAT
    found = {}
    for size, multiply in [(16, multiply_tiled), *((size, multiply_expert_tiles) for size in STAYING_SIZES)]:
        plan, inputs = plan_rows(device.context, upload(chosen), x, num_experts, (size, size))
        out = upload(np.full((chosen.size, shape[0]), np.nan, np.float16 if gated else np.float32))
        multiply(device.context, Product(inputs, matrix, out, epilogue), plan.gate_up)
        found[size, multiply.__name__] = download(out)[download(plan.places)]
    expected = found[16, "multiply_tiled"]
    assert not np.isnan(expected).any()
    assert [name for name, each in found.items() if not np.array_equal(each, expected)] == []
