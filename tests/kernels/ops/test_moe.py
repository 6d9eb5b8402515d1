"""Mixture of experts against float64, and the same bits in every batch."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from kernels.batch import LayerCache, Step
from kernels.devices.cuda import CudaDevice
from kernels.ops.attention import cache_shape, rope_attention
from kernels.ops.attention_plan import plan_attention
from kernels.ops.decode_step import select_rows
from kernels.ops.matmul import linear_residual, norm_linear
from kernels.ops.moe import norm_moe_residual
from kernels.runtime.device_array import DeviceArray
from kernels.weights.parameters import Attention, Clamp, Geglu, RmsNorm
from tests.kernels.conftest import Download, Empty, Upload
from tests.kernels.ops.random_weights import random_weight, values_of
from tests.kernels.ops.test_matmul import load, relative

pytestmark = pytest.mark.gpu

CLAMP = Clamp(1.702, 7.0)


@pytest.mark.sanitize("8-2-*", "128-8-*")
@pytest.mark.parametrize(
    ("num_experts", "num_used", "name", "clamp"),
    [
        (8, 2, "MXFP4", CLAMP),
        (32, 4, "MXFP4", CLAMP),
        (5, 5, "Q8_0", CLAMP),
        (128, 8, "Q4_K", None),
        (60, 4, "Q6_K", None),
        (160, 10, "Q4_0", None),
        (16, 4, "Q4_K/Q5_K", None),
        (8, 2, "MXFP4/Q8_0", CLAMP),
        (16, 4, "Q2_K", None),
        (16, 4, "Q3_K", None),
        (16, 4, "IQ4_XS", None),
        (16, 4, "IQ4_NL", None),
        (16, 4, "IQ2_XXS", None),
        (16, 4, "IQ3_S", None),
    ],
)
def test_experts_are_chosen_and_summed_as_in_float64(
    device: CudaDevice,
    upload: Upload,
    download: Download,
    num_experts: int,
    num_used: int,
    name: str,
    clamp: Clamp | None,
) -> None:
    rng = np.random.default_rng(num_experts)
    width, inner = (192, 128) if clamp else (512, 256)  # K formats have blocks of 256
    names = name.split("/")  # of gates and of up projections, where they differ
    gate, up = (random_weight(each, (num_experts, inner, width), rng, bias=bool(clamp)) for each in (names * 2)[:2])
    down = random_weight(names[0], (num_experts, width, inner), rng, bias=bool(clamp))
    router_weight = random_weight("F32", (num_experts, width), rng, bias=True)
    experts, router = load(device, lambda store: (store.experts(gate, up, down), store.router(router_weight, num_used)))
    x = rng.normal(size=(2300, width)).astype(np.float32)
    norm_weight = rng.normal(3, 0.1, width).astype(np.float32)
    norm = RmsNorm(upload(norm_weight), 1e-5)

    normed = x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True) + 1e-5) * norm_weight
    logits = normed @ values_of(router_weight).T + router_weight.bias
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :num_used]
    routing_weights = np.exp(np.take_along_axis(logits, chosen, axis=1))
    routing_weights /= routing_weights.sum(axis=1, keepdims=True)
    gates, ups, downs = values_of(gate), values_of(up), values_of(down)
    expected = x[:300].astype(np.float64)
    for token in range(300):
        for expert, routing_weight in zip(chosen[token], routing_weights[token], strict=True):
            g, u, steepness = gates[expert] @ normed[token], ups[expert] @ normed[token], 1.0
            if clamp:
                g = np.minimum(g + gate.bias[expert], clamp.limit)
                u = np.clip(u + up.bias[expert], -clamp.limit, clamp.limit) + 1
                steepness = clamp.alpha
            result = downs[expert] @ (g / (1 + np.exp(-steepness * g)) * u)
            expected[token] += routing_weight * (result + down.bias[expert] if clamp else result)

    found = {}
    for num_tokens in (1, 2, 4, 5, 64, 300, 1100, 2300):
        stream = upload(x[:num_tokens])
        norm_moe_residual(device.context, stream, norm, router, experts, clamp, out=stream)
        found[num_tokens] = download(stream)
    assert relative(found[2300][:300] - x[:300], expected - x[:300]) < 3e-3
    assert [n for n in found if not np.array_equal(found[n], found[2300][:n])] == []


@pytest.mark.sanitize("Q8_0")
@pytest.mark.parametrize("name", ["Q8_0", "Q4_0"])
def test_experts_beside_a_dense_block_are_as_in_float64(
    device: CudaDevice, upload: Upload, download: Download, name: str
) -> None:
    """A fused matrix of gates and ups, a norm of their own, scales of results; the sum is stored."""
    rng = np.random.default_rng(3)
    num_experts, num_used, width, inner = 16, 3, 192, 96
    both = random_weight(name, (num_experts, 2 * inner, width), rng)
    down = random_weight(name, (num_experts, width, inner), rng)
    router_weight = random_weight("F32", (num_experts, width), rng)
    input_weight, scales = rng.normal(1, 0.3, width).astype(np.float32), rng.normal(1, 0.3, num_experts).astype("f4")
    experts, router = load(
        device,
        lambda store: (
            store.experts(both, None, down),
            store.router(router_weight, num_used, store.vector(input_weight), store.vector(scales)),
        ),
    )
    x = rng.normal(size=(300, width)).astype(np.float32)
    norm = RmsNorm(upload(np.full(width, 3, np.float32)), 1e-5)
    normed = 3 * x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True) + 1e-5)
    logits = normed @ values_of(router_weight).T
    chosen = np.argsort(-logits, axis=1, kind="stable")[:, :num_used]
    routing_weights = np.exp(np.take_along_axis(logits, chosen, axis=1))
    routing_weights *= scales[chosen] / routing_weights.sum(axis=1, keepdims=True)
    gates_ups, downs = values_of(both), values_of(down)
    expected = np.zeros((300, width))
    for token in range(300):
        for expert, routing_weight in zip(chosen[token], routing_weights[token], strict=True):
            projected = gates_ups[expert] @ (normed[token] * input_weight)
            g, u = projected[:inner], projected[inner:]
            gated = 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3))) * u / 16
            expected[token] += routing_weight * (downs[expert] @ gated)
    found = {}
    for num_tokens in (1, 2, 4, 5, 64, 300):
        out = upload(np.full((num_tokens, width), np.nan, np.float32))
        norm_moe_residual(
            device.context, upload(x[:num_tokens]), norm, router, experts, Geglu(0.0625), adds=False, out=out
        )
        found[num_tokens] = download(out)
    assert relative(found[300], expected) < 4e-3
    assert [n for n in found if not np.array_equal(found[n], found[300][:n])] == []


def test_of_experts_with_equal_logits_the_lower_one_is_chosen_in_every_batch(
    device: CudaDevice, upload: Upload, download: Download
) -> None:
    rng = np.random.default_rng(8)
    num_experts, num_used, width, inner = 16, 3, 512, 256
    gate, up = (random_weight("Q4_K", (num_experts, inner, width), rng) for _ in range(2))
    down = random_weight("Q4_K", (num_experts, width, inner), rng)
    pairs = np.repeat(rng.normal(size=(num_experts // 2, width)).astype(np.float32), 2, axis=0)
    router_weight = replace(random_weight("F32", (num_experts, width), rng), data=pairs.view(np.uint8))
    experts, router = load(device, lambda store: (store.experts(gate, up, down), store.router(router_weight, num_used)))
    x = rng.normal(size=(64, width)).astype(np.float32)
    norm = RmsNorm(upload(np.ones(width, np.float32)), 1e-5)
    found = {}
    for num_tokens in (1, 4, 64):
        stream = upload(x[:num_tokens])
        norm_moe_residual(device.context, stream, norm, router, experts, None, out=stream)
        found[num_tokens] = download(stream)
    assert [n for n in found if not np.array_equal(found[n], found[64][:n])] == []


@pytest.mark.parametrize("num_tokens", [1, 2, 4])
@pytest.mark.parametrize("name", ["MXFP4", "Q8_0", "Q4_K"])
def test_layers_in_a_graph_have_the_bits_of_kernels_that_wait_for_each_other(
    device: CudaDevice,
    upload: Upload,
    empty: Empty,
    download: Download,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    num_tokens: int,
) -> None:
    """Blocks of a kernel begin while some before it are at work: they must not read too soon what these write."""
    rng = np.random.default_rng(num_tokens)
    # So wide that even of a single token the experts' results are summed by a kernel of its own.
    num_experts, num_used, width, inner, num_layers = 8, 4, 2816, 768, 12
    gate, up = (random_weight(name, (num_experts, inner, width), rng, bias=True) for _ in range(2))
    down = random_weight(name, (num_experts, width, inner), rng, bias=True)
    router_weight = random_weight("F32", (num_experts, width), rng, bias=True)
    heads, kv_heads, size, context_tokens = 8, 2, 64, 300
    into = [random_weight(name, (rows, width), rng) for name, rows in (("Q4_K", 640), ("Q6_K", 128))]  # V overlaps Q, K
    back = random_weight("Q8_0", (width, heads * size), rng)
    experts, router, first, last = load(
        device,
        lambda store: (
            store.experts(gate, up, down),
            store.router(router_weight, num_used),
            store.projection(into),
            store.projection([back]),
        ),
    )
    attention = Attention(heads, kv_heads, size, scale=size**-0.5)
    step, num_blocks = _decode_step(upload, num_tokens, context_tokens)
    shape = cache_shape(num_blocks, 16, kv_heads, size)
    cache = LayerCache(*(upload(rng.normal(size=shape).astype(np.float16)) for _ in "kv"))
    norm = RmsNorm(upload(rng.normal(1, 0.1, width).astype(np.float32)), 1e-5)
    x, rows = upload(rng.normal(size=(num_tokens, width)).astype(np.float32)), upload(np.arange(num_tokens, dtype="i4"))
    qkv, attended = (empty((num_tokens, columns), np.float16) for columns in (768, heads * size))
    context = device.context

    def layers() -> DeviceArray:
        stream = select_rows(context, x, rows, width)
        plan = plan_attention(context, step, attention)
        for _ in range(num_layers):
            norm_linear(context, stream, norm, first, out=qkv)
            rope_attention(context, qkv, None, attention, step, plan, out_cache=cache, out=attended)
            linear_residual(context, attended, last, out=stream)
            norm_moe_residual(context, stream, norm, router, experts, CLAMP, out=stream)
        return stream

    launch = context.launch

    def launch_alone(*launched: Any, **options: Any) -> None:
        launch(*launched, **options)
        device.synchronise()

    with monkeypatch.context() as alone:
        alone.setattr(context, "launch", launch_alone)
        expected = download(layers())
    assert np.isfinite(expected).all()
    mark, streams = context.mark(), []
    graph = device.capture(lambda: streams.append(layers()), "layers")
    for _ in range(20):
        graph.launch()
        np.testing.assert_array_equal(download(streams[0]), expected)
    context.release(mark)


def _decode_step(upload: Upload, num_sequences: int, num_tokens: int) -> tuple[Step[DeviceArray], int]:
    """The last of ``num_tokens`` tokens of each sequence, and the blocks of 16 tokens of all."""
    rows, last = np.arange(num_sequences), num_tokens - 1
    tables = np.arange(num_sequences * (last // 16 + 1)).reshape(num_sequences, -1)
    slots, lengths = tables[:, last // 16] * 16 + last % 16, np.full(num_sequences, num_tokens)
    arrays = (rows, lengths - 1, slots, rows, np.arange(num_sequences + 1), lengths, lengths, tables, rows)
    return Step(*(upload(array.astype(np.int32)) for array in arrays)), tables.size
