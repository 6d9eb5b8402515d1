"""kernels.ops.matmul_tuning: launch shapes that depend on the GPU, on dry contexts: they fit it and spread the work."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import kernels.kernel_variants  # noqa: F401 - that declares the structs of every kernel
from kernels.ops.matmul import linear, norm_linear
from kernels.ops.matmul_tuning import (
    LARGEST_SIZE,
    SHAPES_APART,
    SUMMING_SIZES,
    ring_bytes,
    routed_sizes,
    routed_tile_size,
    summed_shape,
    tile_shape,
)
from kernels.runtime import driver
from kernels.runtime.compiler import SOURCE_DIRECTORY, read_source
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import A100, H100, GpuSpec
from kernels.runtime.launcher import Context
from kernels.weights.formats import FORMATS
from kernels.weights.packed import PackedMatrix, Projection
from kernels.weights.parameters import RmsNorm

SMALL = replace(H100, num_sms=28)


def matrix(name: str, num_rows: int, width: int) -> PackedMatrix:
    return PackedMatrix(
        FORMATS[name], num_rows, width, 1, False, DeviceArray(0, (1, 0), np.dtype(np.uint8)), None, None
    )


def array(*shape: int) -> DeviceArray:
    return DeviceArray(0, shape, np.dtype(np.float16))


@pytest.mark.parametrize("gpu", [H100, SMALL], ids=["132 SMs", "28"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_single_tokens_blocks_have_an_sm_each_and_whole_tiles(gpu: GpuSpec, name: str) -> None:
    launches: list[tuple] = []
    context = Context(gpu)
    context.launch = lambda *launch, **rest: launches.append((*launch, rest))  # type: ignore[method-assign]
    for num_rows in (1, 100, 896, 1152, 3072, 9728, 16384, 151936):
        for width in (256, 896 if FORMATS[name].block_elements < 256 else 1024, 3072, 8192):
            weights = matrix(name, num_rows, width)
            linear(context, array(1, width), Projection((weights,)), out=array(1, num_rows))
            _, kernel, grid, threads, _, rest = launches.pop()
            assert kernel == "matmul_gemv" and not launches
            assert grid[0] <= gpu.num_sms
            assert threads // 32 <= weights.format.block_warps
            assert threads // 32 % weights.num_partitions == 0
            assert rest["shared_bytes"] + weights.format.grid_bytes <= gpu.shared_bytes
            assert 2 * (rest["shared_bytes"] + 1024) > gpu.shared_bytes + 1024, "no room for a second one"


@pytest.mark.parametrize("name", FORMATS)
def test_a_single_tokens_norm_is_made_apart_where_its_blocks_have_no_room_for_it(name: str) -> None:
    context = Context(GpuSpec("sm_89", 58, 99 * 1024))  # refuses launches that do not fit
    launches: list[str] = []
    launch = context.launch
    context.launch = lambda *args, **rest: (launches.append(args[1]), launch(*args, **rest))  # type: ignore[method-assign]
    for num_rows in (100, 896, 1152, 3072, 9728, 16384):
        for width in (256, 1024, 3072, 4096, 8192):
            norm = RmsNorm(array(width), 1e-5)
            norm_linear(
                context, array(1, width), norm, Projection((matrix(name, num_rows, width),)), out=array(1, num_rows)
            )
    assert {"matmul_gemv_normed", "norm_rows"} <= set(launches)


@pytest.mark.parametrize("num_tokens", [9, 16, 33, 64, 128, 192, 512])
@pytest.mark.parametrize("name", ["Q5_0", "Q6_K"])
def test_no_sm_is_given_more_than_its_share_of_a_products_tiles(name: str, num_tokens: int) -> None:
    launches: list[tuple] = []
    context = Context(H100)
    context.launch = lambda *launch, **rest: launches.append((*launch, rest))  # type: ignore[method-assign]
    for num_rows in (896, 3072, 16384):
        linear(
            context,
            array(num_tokens, 3072),
            Projection((matrix(name, num_rows, 3072),)),
            out=array(num_tokens, num_rows),
        )
        names = "matmul_tiled", "matmul_stream_k", "matmul_sliced_k"
        _, kernel, grid, _, _, rest = next(launch for launch in launches if launch[1].startswith(names))
        launches.clear()
        share = -(-math.prod(grid) // H100.num_sms)
        reserved = 1024  # bytes of each block
        assert (share + 1) * (rest["shared_bytes"] + reserved) > H100.shared_bytes + reserved, (kernel, grid)
        blocks_per_sm = {"matmul_tiled_16": 3, "matmul_tiled_32": 3, "matmul_tiled_64": 2}.get(kernel, 1)
        assert min(share, blocks_per_sm) * (rest["shared_bytes"] + reserved) <= H100.shared_bytes + reserved, (
            kernel,
            grid,
        )


def test_the_shape_of_a_product_is_the_same_between_the_numbers_of_tokens_that_memory_is_planned_at() -> None:
    planned = {size for size in SUMMING_SIZES if size < SHAPES_APART} | set(range(SHAPES_APART, 1025, SHAPES_APART))
    for num_rows, num_chunks, num_partitions in ((896, 14, 7), (9728, 14, 3), (3072, 128, 8), (16384, 48, 1)):
        shapes = [tile_shape(H100, num_rows, num_chunks, num_partitions, num_tokens) for num_tokens in range(1, 1025)]
        assert {n for n in range(1, 1024) if shapes[n - 1] != shapes[n]} <= planned
        assert len(set(shapes)) > 1


@pytest.mark.parametrize("arch", ["sm_90a", "sm_80"])
@pytest.mark.parametrize("name", ["F16", "F32", "MXFP4", "Q2_K", "Q6_K", "IQ2_S", "IQ3_XXS"])
def test_tiles_are_given_the_shared_memory_that_their_kernels_count_on(arch: str, name: str, tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="the CUDA packages are not installed")
    gpu = replace(H100, arch=arch)
    sizes = (*SUMMING_SIZES, LARGEST_SIZE) if gpu.has_wgmma else SUMMING_SIZES
    claims = [f"static_assert(Ring<{size}>::num_bytes == {ring_bytes(gpu, FORMATS[name], size)});" for size in sizes]
    (tmp_path / "claims.cu").write_text(
        "\n".join([f'#include "{SOURCE_DIRECTORY / "matmul" / "matmul_tiled.cu"}"', *claims])
    )
    options = ("-std=c++17", "-diag-suppress=177", f"-arch={arch}", f"-DFORMAT={name}")
    # The compiler may end once it has read the file: the claims need none of the kernels' code.
    driver.compile_source("claims.cu", read_source(tmp_path / "claims.cu"), (*options, "-fdevice-syntax-only"))


@pytest.mark.parametrize(
    ("name", "num_rows", "width", "source"),
    [
        ("Q4_K", 3072, 3072, "matmul/matmul_narrow"),  # two tiles of six partitions
        ("Q4_K", 2560, 9728, "matmul/matmul"),  # two of ten: 20 warps
        ("Q2_K", 3072, 3072, "matmul/matmul"),  # few words: two places in any block
        ("Q8_0", 3072, 3072, "matmul/matmul_narrow"),
        ("Q8_0", 2880, 4096, "matmul/matmul"),  # two of eleven: 22 warps
        ("Q5_0", 3072, 3072, "matmul/matmul"),
        ("IQ3_S", 3072, 3072, "matmul/matmul"),
    ],
)
def test_narrow_blocks_have_kernels_with_more_registers(name: str, num_rows: int, width: int, source: str) -> None:
    launches: list[tuple] = []
    context = Context(H100)
    context.launch = lambda *launch, **rest: launches.append(launch)  # type: ignore[method-assign]
    layers = Projection((matrix(name, num_rows, width),))
    for num_tokens in (1, 2):
        linear(context, array(num_tokens, width), layers, out=array(num_tokens, num_rows))
    assert [launch[:2] for launch in launches] == [(source, "matmul_gemv"), ("matmul/matmul", "matmul_small_batch")]


def test_partitions_are_whole_units_and_none_is_empty() -> None:
    for name, width in (("Q4_K", 4864), ("Q6_K", 8192), ("Q5_0", 896), ("MXFP4", 2880)):
        for num_rows in (16, 896, 3072, 16384):
            for num_experts in (1, 32):
                weights = replace(matrix(name, num_rows, width), num_experts=num_experts)
                assert 1 <= weights.num_partitions <= min(weights.format.block_warps, weights.num_units)


def experts(name: str, width: int = 2880) -> PackedMatrix:
    """A matrix of 32 experts, with one partition if it is narrow."""
    return replace(matrix(name, 2880, width), num_experts=32)


@pytest.mark.parametrize(
    ("gpu", "matrices", "sizes"),
    [
        (A100, [experts("MXFP4")], [16, 16, 64, 64, 128, 128]),
        (H100, [experts("Q4_K", 2816)], [16, 16, 64, 64, 128, 128]),
        (H100, [experts("MXFP4", 64)], [16, 16, 48, 80, 160, 256]),
        (H100, [experts("MXFP4")], [16, 16, 48, 80, 160, 160]),
        (H100, [experts("MXFP4", 64), experts("MXFP4")], [16, 16, 48, 80, 160, 160]),
        (H100, [experts("MXFP4", 64), experts("Q8_0", 64)], [16, 16, 64, 64, 128, 128]),
    ],
)
def test_the_tiles_of_experts_hold_what_most_of_them_have(
    gpu: GpuSpec, matrices: list[PackedMatrix], sizes: list[int]
) -> None:
    tokens = (5, 64, 256, 512, 1024, 8192)
    assert [routed_tile_size(routed_sizes(gpu, *matrices), each, 4, 32) for each in tokens] == sizes


@pytest.mark.parametrize("name", FORMATS)
def test_tiles_of_sizes_that_only_experts_have_are_those_of_one_format(name: str) -> None:
    sizes = routed_sizes(H100, experts(name, 256))
    assert set(sizes) >= set(SUMMING_SIZES)
    assert (set(sizes) - {LARGEST_SIZE} == set(SUMMING_SIZES)) == (name != "MXFP4")


@pytest.mark.parametrize("name", ["Q4_K", "MXFP4"])
def test_the_tiles_of_experts_change_their_size_only_where_memory_is_planned(name: str) -> None:
    tiles = routed_sizes(H100, experts(name, 256))
    sizes = [routed_tile_size(tiles, num_tokens, 8, 128) for num_tokens in range(5, 3000)]
    changes = [number for number in range(6, 3000) if sizes[number - 5] != sizes[number - 6]]
    assert changes and all((n - 1) % SHAPES_APART == 0 for n in changes)


def test_experts_are_summed_in_one_kernel_where_every_tile_has_an_sm() -> None:
    down = replace(matrix("Q6_K", 2048, 768), num_experts=128)
    shape = summed_shape(H100, down, 8)
    assert shape is not None and (shape.num_blocks, shape.num_warps) == (128, 8 * down.num_partitions)
    assert shape.shared_bytes <= H100.shared_bytes
    assert summed_shape(SMALL, down, 8) is None  # more tiles than SMs
    assert summed_shape(H100, down, 30) is None  # more warps than a block may have
    down = replace(matrix("Q2_K", 2048, 512), num_experts=128)
    shapes = [summed_shape(H100, down, num_used) for num_used in range(1, 10)]
    assert all(shape is not None and shape.ring_at % 32 == 0 for shape in shapes)  # `SharedScales::store`
