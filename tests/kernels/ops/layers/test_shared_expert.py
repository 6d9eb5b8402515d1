"""kernels.ops.layers.shared_expert against float64, and the same bits in every batch."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.ops.layers.shared_expert import add_shared_expert
from kernels.ops.moe import norm_moe_residual
from kernels.weights.parameters import RmsNorm, SharedWeights
from tests.kernels.conftest import Download, Upload
from tests.kernels.ops.random_weights import random_weight, values_of
from tests.kernels.ops.test_matmul import load, relative

pytestmark = pytest.mark.gpu


@pytest.mark.sanitize("Q4_K")
@pytest.mark.parametrize("names", ["Q4_K", "Q8_0", "Q4_K/Q5_K"])
def test_what_it_makes_is_gated_and_added_as_in_float64(
    device: CudaDevice, upload: Upload, download: Download, names: str
) -> None:
    rng = np.random.default_rng(5)
    width, inner = 512, 256
    first, last = names.split("/")[0], names.split("/")[-1]
    gate, up = random_weight(first, (inner, width), rng), random_weight(last, (inner, width), rng)
    down = random_weight(first, (width, inner), rng)
    output_gate = rng.normal(0, 0.1, width).astype(np.float32)
    shared = load(device, lambda store: store._shared(SharedWeights(gate, up, down, output_gate)))
    normed = rng.normal(size=(300, width)).astype(np.float16)
    x = normed.astype(np.float64)
    g, u = x @ values_of(gate).T, x @ values_of(up).T
    share = 1 / (1 + np.exp(-(x @ output_gate)))
    expected = (g / (1 + np.exp(-g)) * u) @ values_of(down).T * share[:, None]
    found = {}
    for num_tokens in (1, 2, 4, 5, 64, 300):
        out = upload(np.zeros((num_tokens, width), np.float32))
        add_shared_expert(device.context, upload(normed[:num_tokens]), shared, out=out)
        found[num_tokens] = download(out)
    assert relative(found[300], expected) < 3e-3
    assert [n for n in found if not np.array_equal(found[n], found[300][:n])] == []


@pytest.mark.sanitize("Q4_K-Q4_K")
@pytest.mark.parametrize(
    ("name", "shared_name"), [("Q4_K", "Q4_K"), ("Q8_0", "Q8_0"), ("Q6_K", "Q6_K"), ("Q4_K", "Q8_0")]
)
def test_it_comes_after_the_chosen_ones_with_the_same_bits_for_one_token_and_for_many(
    device: CudaDevice, upload: Upload, download: Download, name: str, shared_name: str
) -> None:
    """One token has it among the others where it is like them."""
    rng = np.random.default_rng(6)
    num_experts, num_used, width, inner = 256, 8, 1024, 256
    gate, up = (random_weight(name, (num_experts, inner, width), rng) for _ in range(2))
    down = random_weight(name, (num_experts, width, inner), rng)
    own_gate, own_up = (random_weight(shared_name, (inner, width), rng) for _ in range(2))
    own_down = random_weight(shared_name, (width, inner), rng)
    output_gate = rng.normal(0, 0.1, width).astype(np.float32)
    router_weight = random_weight("F32", (num_experts, width), rng)
    shared = SharedWeights(own_gate, own_up, own_down, output_gate)
    experts, router, plain = load(
        device,
        lambda store: (
            store.experts(gate, up, down, shared),
            store.router(router_weight, num_used),
            store.experts(gate, up, down),
        ),
    )
    x = rng.normal(size=(64, width)).astype(np.float32)
    norm = RmsNorm(upload(np.ones(width, np.float32)), 1e-5)
    found, without = {}, None
    for num_tokens in (1, 2, 4, 5, 64):
        stream = upload(x[:num_tokens])
        before = device.context.num_launches
        norm_moe_residual(device.context, stream, norm, router, experts, None, out=stream)
        if num_tokens == 1:
            assert device.context.num_launches - before == (3 if name == shared_name else 6)
        found[num_tokens] = download(stream)
    without = upload(x)
    norm_moe_residual(device.context, without, norm, router, plain, None, out=without)
    normed = x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True) + 1e-5)
    g, u = normed @ values_of(own_gate).T, normed @ values_of(own_up).T
    share = 1 / (1 + np.exp(-(normed @ output_gate)))
    expected = (g / (1 + np.exp(-g)) * u) @ values_of(own_down).T * share[:, None]
    assert relative(found[64] - download(without), expected) < 5e-3
    assert [n for n in found if not np.array_equal(found[n], found[64][:n])] == []
