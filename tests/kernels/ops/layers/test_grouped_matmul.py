"""kernels.ops.layers.grouped_matmul: experts by blocks that stay give the bits of tiles that do not, and are right."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from kernels.devices.cuda import CudaDevice
from kernels.ops.layers.expert_plan import plan_rows
from kernels.ops.layers.grouped_matmul import (
    MOST_WIDTHS,
    grouped_ring,
    grouped_size,
    multiply_grouped,
    sizes_of,
)
from kernels.ops.matmul import multiply_tiled
from kernels.ops.matmul_params import Epilogue, Product
from kernels.ops.matmul_tuning import shaped_as
from kernels.runtime.gpu_spec import H100
from kernels.weights.formats import FORMATS
from tests.kernels.conftest import Download, Upload
from tests.kernels.ops.random_weights import random_weight, values_of
from tests.kernels.ops.test_matmul import load, relative
from tests.kernels.ops.test_matmul_tuning import matrix as matrix_of

NUM_EXPERTS = 12
# Not by this tool: it takes the barrier on which copies of weights wait for that of the lane which arrives there, and
# does not see that the warp has synchronised before.
RACECHECK = "racecheck"


def uneven(rng: np.random.Generator, most: int) -> NDArray[np.int32]:
    """An expert for each pair: some have none, one has `most`."""
    counts = rng.integers(0, most, NUM_EXPERTS)
    counts[3], counts[5] = 0, most
    return rng.permutation(np.repeat(np.arange(NUM_EXPERTS), counts))[:, None].astype(np.int32)


@pytest.mark.parametrize(("num_rows", "num_partitions"), [(5760, 1), (2880, 2)])
def test_tiles_change_their_size_only_where_memory_is_planned(num_rows: int, num_partitions: int) -> None:
    experts = replace(matrix_of("MXFP4", num_rows, 2880), num_experts=32)
    assert experts.num_partitions == num_partitions
    sizes = [grouped_size(H100, experts, num_tokens, 4) for num_tokens in range(5, 3000)]
    changes = [number for number in range(6, 3000) if sizes[number - 5] != sizes[number - 6]]
    assert changes and all(shaped_as(number - 1) == number - 1 for number in changes)
    assert sizes[0] is None and max(filter(None, sizes)) == (256 if num_partitions == 1 else 160)


def test_every_width_of_a_tile_has_a_tensor_map_and_a_stage_is_filled_while_another_one_is_read() -> None:
    for each, num_partitions in product(FORMATS.values(), (1, 2)):
        for size, (step, least, *_) in sizes_of(each, num_partitions).items():
            assert size % step == 0 and least % step == 0 and size // step <= MOST_WIDTHS
            assert grouped_ring(each, num_partitions, size).stages > 1


@pytest.mark.gpu
@pytest.mark.sanitize("*-several partitions", but=RACECHECK)
@pytest.mark.parametrize(
    "shape", [(208, 768), (4096, 256), (4160, 256)], ids=["several partitions", "two partitions", "one partition"]
)
@pytest.mark.parametrize("name", [name for name, each in FORMATS.items() if sizes_of(each, 1)])
def test_products_have_the_bits_of_small_tiles_and_are_those_of_float64(
    device: CudaDevice, upload: Upload, download: Download, name: str, shape: tuple[int, int]
) -> None:
    """More tiles than there are blocks, of which some have few tokens, and one to several partitions."""
    if not device.context.gpu.has_wgmma:
        pytest.skip("for Hopper")
    rng = np.random.default_rng(7)
    weight = random_weight(name, (NUM_EXPERTS, *shape), rng, bias=True)
    unused = random_weight(name, (NUM_EXPERTS, 256, 256), rng)
    matrix = load(device, lambda store: store.experts(unused, unused, weight)).down
    chosen = uneven(rng, 400)
    x = rng.normal(size=(chosen.size, shape[1])).astype(np.float16)
    found = {}
    for size, multiply in [
        (16, multiply_tiled),
        *((size, multiply_grouped) for size in sizes_of(matrix.format, matrix.num_partitions)),
    ]:
        plan, inputs = plan_rows(device.context, upload(chosen), upload(x), NUM_EXPERTS, (size, size))
        out = upload(np.full((chosen.size, shape[0]), np.nan, np.float32))
        multiply(device.context, Product(inputs, matrix, out, Epilogue.STORE_FLOAT), plan.down)
        found[size, multiply.__name__] = download(out)[download(plan.places)]
    values, bias = values_of(weight), np.asarray(weight.bias)
    expected = np.empty((chosen.size, shape[0]))
    for expert in range(NUM_EXPERTS):
        rows = chosen[:, 0] == expert
        expected[rows] = x[rows].astype(np.float64) @ values[expert].T + bias[expert]
    first = found[16, "multiply_tiled"]
    assert relative(first, expected) < 6e-4
    assert [key for key, each in found.items() if not np.array_equal(each, first)] == []


@pytest.mark.gpu
@pytest.mark.sanitize("*-SWIGLU", but=RACECHECK)
@pytest.mark.parametrize(
    "epilogue", [Epilogue.SWIGLU, Epilogue.CLAMPED_SWIGLU, Epilogue.GEGLU], ids=lambda kind: kind.name
)
@pytest.mark.parametrize(("name", "width"), [("MXFP4", 192), ("Q4_K", 256), ("Q6_K", 512)])
def test_gated_products_have_the_bits_of_small_tiles(
    device: CudaDevice, upload: Upload, download: Download, name: str, width: int, epilogue: Epilogue
) -> None:
    """Tiles of every width, in matrices whose last rows are no whole block's."""
    if not device.context.gpu.has_wgmma:
        pytest.skip("for Hopper")
    rng, inner = np.random.default_rng(2), 2080
    gate, up = (random_weight(name, (NUM_EXPERTS, inner, width), rng, bias=True) for _ in "gu")
    down = random_weight("MXFP4", (NUM_EXPERTS, 64, inner), rng)
    (matrix,) = load(device, lambda store: store.experts(gate, up, down)).gate_up
    counts = [4, 40, 72, 104, 136, 152, 184, 216, 250, 0, 500, 1]
    chosen = rng.permutation(np.repeat(np.arange(NUM_EXPERTS), counts))[:, None].astype(np.int32)
    x = upload(rng.normal(size=(chosen.size, width)).astype(np.float16))
    found = {}
    for size, multiply in [
        (16, multiply_tiled),
        *((size, multiply_grouped) for size in sizes_of(matrix.format, matrix.num_partitions)),
    ]:
        plan, inputs = plan_rows(device.context, upload(chosen), x, NUM_EXPERTS, (size, size))
        out = upload(np.full((chosen.size, inner), np.nan, np.float16))
        multiply(device.context, Product(inputs, matrix, out, epilogue, alpha=1.702, limit=7.0), plan.gate_up)
        found[size, multiply.__name__] = download(out)[download(plan.places)]
    first = found[16, "multiply_tiled"]
    assert np.isfinite(first).all() and first.astype(np.float64).std() > 0.1
    assert [key for key, each in found.items() if not np.array_equal(each, first)] == []
