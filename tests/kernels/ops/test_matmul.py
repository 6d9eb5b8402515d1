"""Products on packed weights: values against float64, and the same bits in every batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.ops.matmul import (
    linear,
    linear_norm_residual,
    linear_residual,
    norm_gelu,
    norm_head,
    norm_linear,
    norm_swiglu,
)
from kernels.runtime.compiler import Compiler
from kernels.runtime.launcher import Context
from kernels.runtime.module_cache import ModuleCache
from kernels.weights.formats import FORMATS
from kernels.weights.packed import Projection
from kernels.weights.parameters import LayerNorm, RmsNorm
from kernels.weights.weight_store import PackedWeightStore
from tests.kernels.conftest import Download, Empty, Upload
from tests.kernels.ops.random_weights import random_weight, values_of

pytestmark = pytest.mark.gpu

Made = TypeVar("Made")

TOKENS = (1, 3, 4, 5, 16, 33, 64, 100, 128, 300, 1000)  # every kernel and tile, partitions by one block and by several


def load(device: CudaDevice, make: Callable[[PackedWeightStore], Made]) -> Made:
    """What ``make(store)`` lays out, on the device."""
    store = PackedWeightStore(device.context, device.weights)
    made = make(store)
    assert store.load(lambda _done, _total: None) == []
    return made


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.sanitize("(64, 256)-*")
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("shape", [(64, 256), (1000, 768), (48, 4864 // 256 * 256)], ids=str)
def test_every_format_multiplies_as_in_float64(
    device: CudaDevice, upload: Upload, empty: Empty, download: Download, name: str, shape: tuple[int, int]
) -> None:
    rng = np.random.default_rng(1)
    weight = random_weight(name, shape, rng, bias=True)
    layers: Projection = load(device, lambda store: store.projection([weight]))
    worst = {}
    for num_tokens in TOKENS:
        x = rng.normal(size=(num_tokens, shape[1])).astype(np.float16)
        out = empty((num_tokens, shape[0]), np.float32)
        linear(device.context, upload(x), layers, out=out)
        expected = x.astype(np.float64) @ values_of(weight).T + weight.bias
        worst[num_tokens] = relative(download(out), expected)
    assert max(worst.values()) < 6e-4, worst


@pytest.mark.sanitize("(896, 896)-Q4_K")
@pytest.mark.parametrize(
    "name", ["Q4_0", "Q5_0", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ2_S", "IQ3_S", "IQ4_XS", "MXFP4", "F16"]
)
@pytest.mark.parametrize("shape", [(896, 896), (9728, 256), (256, 4096)], ids=str)
def test_a_row_has_the_same_bits_in_every_batch(
    device: CudaDevice, upload: Upload, empty: Empty, download: Download, name: str, shape: tuple[int, int]
) -> None:
    if shape[1] % FORMATS[name].block_elements:
        pytest.skip("rows hold whole blocks")
    rng = np.random.default_rng(2)
    weight = random_weight(name, shape, rng)
    layers = load(device, lambda store: store.projection([weight]))
    x = rng.normal(size=(TOKENS[-1], shape[1])).astype(np.float16)
    found = {}
    for num_tokens in TOKENS:
        out = empty((num_tokens, shape[0]), np.float32)
        linear(device.context, upload(x[:num_tokens]), layers, out=out)
        found[num_tokens] = download(out)
    different = [n for n in TOKENS if not np.array_equal(found[n], found[TOKENS[-1]][:n])]
    assert not different


@pytest.mark.parametrize("width", [256, 768, 1280])
@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS", "Q8_0"])
def test_warps_that_multiply_one_tile_after_the_other_give_the_same_bits(
    device: CudaDevice, upload: Upload, empty: Empty, download: Download, name: str, width: int
) -> None:
    num_rows = 16 * 20 * device.context.gpu.num_sms + 4000
    rng = np.random.default_rng(7)
    layers = load(device, lambda store: store.projection([random_weight(name, (num_rows, width), rng)]))
    x = rng.normal(size=(5, width)).astype(np.float16)
    outs = [empty((num_tokens, num_rows), np.float32) for num_tokens in (1, 3, 5)]
    for out in outs:
        linear(device.context, upload(x[: out.shape[0]]), layers, out=out)
    one, three, five = map(download, outs)
    np.testing.assert_array_equal(one, five[:1])
    np.testing.assert_array_equal(three, five[:3])


@pytest.mark.sanitize("768-Q4_K", "2048-MXFP4")
@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS", "Q8_0", "MXFP4"])
@pytest.mark.parametrize("width", [768, 2048, 3072])
def test_a_normed_token_has_the_same_bits_alone(
    device: CudaDevice, upload: Upload, empty: Empty, download: Download, name: str, width: int
) -> None:
    num_rows = 3072
    rng = np.random.default_rng(8)
    layers = load(device, lambda store: store.projection([random_weight(name, (num_rows, width), rng, bias=True)]))
    x, norm = (
        rng.normal(size=(5, width)).astype(np.float32),
        RmsNorm(upload(rng.normal(1, 0.1, width).astype("f4")), 1e-6),
    )
    outs = [empty((num_tokens, num_rows), np.float32) for num_tokens in (1, 3, 5)]
    for out in outs:
        norm_linear(device.context, upload(x[: out.shape[0]]), norm, layers, out=out)
    one, three, five = map(download, outs)
    np.testing.assert_array_equal(one, five[:1])
    np.testing.assert_array_equal(three, five[:3])


@pytest.mark.sanitize("5")
@pytest.mark.parametrize("num_tokens", [1, 5, 40, 200])
def test_neighbours_of_other_formats_and_widths_lie_side_by_side(
    device: CudaDevice, upload: Upload, empty: Empty, download: Download, num_tokens: int
) -> None:
    rng = np.random.default_rng(3)
    weights = [random_weight("Q5_0", (96, 96), rng, bias=True), random_weight("Q5_0", (32, 96), rng),
               random_weight("Q5_1", (40, 96), rng, bias=True)]  # fmt: skip
    layers = load(device, lambda store: store.projection(weights))
    assert len(layers.matrices) == 2
    x = rng.normal(size=(num_tokens, 96)).astype(np.float32) * 30
    norm_weight = rng.normal(1, 0.1, 96).astype(np.float32)
    norm = RmsNorm(upload(norm_weight), 1e-6)
    out = empty((num_tokens, 168), np.float16)
    norm_linear(device.context, upload(x), norm, layers, out=out)
    normed = x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True) + 1e-6) * norm_weight
    expected = np.concatenate([normed @ values_of(w).T + (0 if w.bias is None else w.bias) for w in weights], axis=1)
    assert relative(download(out).astype(np.float64), expected) < 1.2e-3


@pytest.mark.sanitize("*-5")
@pytest.mark.parametrize("num_tokens", [1, 4, 5, 70, 300])
@pytest.mark.parametrize("kind", ["two", "fused", "mixed"])
def test_swiglu_is_fused_where_formats_allow(
    device: CudaDevice, upload: Upload, empty: Empty, download: Download, num_tokens: int, kind: str
) -> None:
    rng = np.random.default_rng(4)
    num_gated, width = 256 + 8, 256
    if kind == "fused":
        weights = [random_weight("Q4_K", (2 * num_gated, width), rng)]
    else:
        weights = [random_weight("Q5_0", (num_gated, width), rng),
                   random_weight("Q8_0" if kind == "mixed" else "Q5_0", (num_gated, width), rng)]  # fmt: skip
    layers = load(device, lambda store: store.gate_up(weights))
    assert layers.matrices[0].gated == (kind != "mixed")
    x = rng.normal(size=(num_tokens, width)).astype(np.float32)
    norm_weight = rng.normal(2, 0.1, width).astype(np.float32)
    out = empty((num_tokens, num_gated), np.float16)
    norm_swiglu(device.context, upload(x), RmsNorm(upload(norm_weight), 1e-5), layers, out=out)
    normed = x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True) + 1e-5) * norm_weight
    both = normed @ np.concatenate([values_of(w) for w in weights]).T
    gate, up = both[:, :num_gated], both[:, num_gated:]
    assert relative(download(out).astype(np.float64), gate / (1 + np.exp(-gate)) * up) < 2e-3


@pytest.mark.sanitize("4")
@pytest.mark.parametrize("num_tokens", [1, 4, 50])
def test_gelu_layer_norm_residual_and_head(
    device: CudaDevice, upload: Upload, empty: Empty, download: Download, num_tokens: int
) -> None:
    rng = np.random.default_rng(5)
    width = 192
    up, down = (random_weight("F16", shape, rng, bias=True) for shape in ((320, width), (width, 320)))
    head = random_weight("F16", (1001, width), rng)
    layers = load(device, lambda store: [store.projection([w]) for w in (up, down, head)])
    x = rng.normal(3, 1, size=(num_tokens, width)).astype(np.float32)
    norm_weight, norm_bias = rng.normal(1, 0.1, (2, width)).astype(np.float32)
    norm = LayerNorm(upload(norm_weight), upload(norm_bias), 1e-5)
    centred = x - x.mean(axis=1, keepdims=True, dtype=np.float64)
    normed = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5) * norm_weight + norm_bias
    activated = empty((num_tokens, 320), np.float16)
    norm_gelu(device.context, upload(x), norm, layers[0], out=activated)
    y = normed @ values_of(up).T + up.bias
    expected = 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3)))
    found = download(activated).astype(np.float64)
    assert relative(found, expected) < 1.5e-3
    stream = upload(x)
    linear_residual(device.context, activated, layers[1], out=stream)
    assert relative(download(stream), x + found @ values_of(down).T + down.bias) < 6e-4
    rows = rng.permutation(num_tokens)[: (num_tokens + 1) // 2].astype(np.int32)
    logits = empty((rows.size, 1001), np.float32)
    norm_head(device.context, upload(x), upload(rows), norm, layers[2], out=logits)
    assert relative(download(logits), normed[rows] @ values_of(head).T) < 8e-4


@pytest.mark.parametrize("name", ["Q8_0", "Q4_K"])
def test_a_branch_is_scaled_or_normed_before_it_is_added(
    device: CudaDevice, upload: Upload, download: Download, name: str
) -> None:
    rng = np.random.default_rng(6)
    width, most = 1280, 300
    weight = random_weight(name, (width, 512), rng, bias=True)
    layers = load(device, lambda store: store.projection([weight]))
    x, before = rng.normal(size=(most, 512)).astype(np.float16), rng.normal(size=(most, width)).astype(np.float32)
    norm_weight = rng.normal(1, 0.1, width).astype(np.float32)
    norm = RmsNorm(upload(norm_weight), 1e-3)
    branch = x.astype(np.float64) @ values_of(weight).T + weight.bias
    normed = branch / np.sqrt((branch**2).mean(axis=1, keepdims=True) + 1e-3) * norm_weight
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for num_tokens in (1, 3, 17, most):
        activated, scaled, added = upload(x[:num_tokens]), upload(before[:num_tokens]), upload(before[:num_tokens])
        linear_residual(device.context, activated, layers, scale=0.22, out=scaled)
        linear_norm_residual(device.context, activated, layers, norm, out=added)
        found[num_tokens] = download(scaled), download(added)
    assert relative(found[most][0] - before, 0.22 * branch) < 8e-4
    assert relative(found[most][1] - before, normed) < 8e-4
    for num_tokens, results in found.items():
        for result, whole in zip(results, found[most], strict=True):
            np.testing.assert_array_equal(result, whole[:num_tokens])


@pytest.mark.parametrize(
    "name", ["F16", "Q4_0", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ2_XS", "IQ3_S", "IQ4_XS", "MXFP4"]
)
def test_kernels_without_hoppers_instructions_give_the_same_bits(
    device: CudaDevice, upload: Upload, empty: Empty, download: Download, name: str
) -> None:
    """Those of every other chip, compiled for this one."""
    gpu = device.gpu
    if not gpu.has_wgmma:
        pytest.skip("on this GPU there are no others")
    plain = Context(
        replace(gpu, arch="sm_90"),
        modules=ModuleCache(Compiler("sm_90")),
        stream=device.stream,
        arena=device.context._arena,
    )
    rng = np.random.default_rng(7)
    layers = load(device, lambda store: store.projection([random_weight(name, (1000, 512), rng, bias=True)]))
    x = rng.normal(size=(TOKENS[-1], 512)).astype(np.float16)
    for num_tokens in TOKENS:
        found = []
        for context in (device.context, plain):
            out = empty((num_tokens, 1000), np.float32)
            linear(context, upload(x[:num_tokens]), layers, out=out)
            found.append(download(out))
        np.testing.assert_array_equal(*found, err_msg=f"{num_tokens} tokens")


def test_no_tokens_launch_nothing(device: CudaDevice, upload: Upload, empty: Empty) -> None:
    rng = np.random.default_rng(6)
    layers = load(device, lambda store: store.projection([random_weight("Q8_0", (64, 64), rng)]))
    before = device.context.num_launches
    linear(device.context, empty((0, 64), np.float16), layers, out=empty((0, 64), np.float32))
    assert device.context.num_launches == before
