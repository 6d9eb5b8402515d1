"""kernels.ops.matmul: GEGLU, its range, and what Gemma has at both ends of a layer."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.ops.matmul import linear_norm_residual, norm_geglu, norm_head
from kernels.weights.parameters import RmsNorm
from tests.kernels.conftest import Download, Empty, Upload
from tests.kernels.ops.random_weights import random_weight, values_of
from tests.kernels.ops.test_matmul import load, relative

pytestmark = pytest.mark.gpu


def geglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    return 0.5 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * up


@pytest.mark.sanitize("*-5")
@pytest.mark.parametrize("num_tokens", [1, 4, 5, 70, 300])
@pytest.mark.parametrize("kind", ["two", "fused", "mixed"])
def test_geglu_is_fused_where_formats_allow(
    device: CudaDevice, upload: Upload, empty: Empty, download: Download, num_tokens: int, kind: str
) -> None:
    rng = np.random.default_rng(4)
    num_gated, width = 256 + 8, 256
    if kind == "fused":
        weights = [random_weight("Q4_K", (2 * num_gated, width), rng)]
    else:
        up_format = "Q8_0" if kind == "mixed" else "Q5_0"
        weights = [random_weight(name, (num_gated, width), rng) for name in ("Q5_0", up_format)]
    layers = load(device, lambda store: store.gate_up(weights))
    x = rng.normal(size=(num_tokens, width)).astype(np.float32)
    norm_weight = rng.normal(2, 0.1, width).astype(np.float32)
    out = empty((num_tokens, num_gated), np.float16)
    norm_geglu(device.context, upload(x), RmsNorm(upload(norm_weight), 1e-5), layers, 0.0625, out=out)
    normed = x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True) + 1e-5) * norm_weight
    both = normed @ np.concatenate([values_of(w) for w in weights]).T
    found = 16 * download(out).astype(np.float64)
    assert relative(found, geglu(both[:, :num_gated], both[:, num_gated:])) < 3e-3


@pytest.mark.parametrize("num_tokens", [1, 40])
def test_outputs_up_to_a_million_survive_with_a_scale(
    device: CudaDevice, upload: Upload, empty: Empty, download: Download, num_tokens: int
) -> None:
    rng = np.random.default_rng(7)
    weights = [random_weight("F16", (256, 256), rng) for _ in range(2)]
    down = random_weight("F16", (256, 256), rng)
    layers, last = load(device, lambda store: (store.gate_up(weights), store.projection([down])))
    x = rng.normal(size=(num_tokens, 256)).astype(np.float32)
    normed = x / np.sqrt(np.mean(x.astype(np.float64) ** 2, axis=1, keepdims=True))
    gate, up = (normed @ values_of(weight).T for weight in weights)
    gain = (8e5 / np.abs(geglu(gate, up)).max()) ** 0.5
    gate, up = gain * gate, gain * up
    product = geglu(gate, up) @ values_of(down).T
    expected = product / np.sqrt((product**2).mean(axis=1, keepdims=True))
    errors = {}
    for scale in (1.0, 0.0625):
        activated, stream = empty((num_tokens, 256), np.float16), upload(np.zeros((num_tokens, 256), np.float32))
        norm = RmsNorm(upload(np.full(256, gain, np.float32)), 1e-6)
        norm_geglu(device.context, upload(x), norm, layers, scale, out=activated)
        after = RmsNorm(upload(np.ones(256, np.float32)), 1e-6 * scale**2)
        linear_norm_residual(device.context, activated, last, after, out=stream)
        errors[scale] = relative(download(stream), expected)
    print(f"largest output {np.abs(geglu(gate, up)).max():.3g}: error {errors[1.0]:.1e}, scaled {errors[0.0625]:.1e}")
    assert errors[0.0625] < 2e-3 < errors[1.0]


@pytest.mark.sanitize("4")
@pytest.mark.parametrize("num_tokens", [1, 4, 50])
def test_logits_have_a_soft_cap_and_the_stream_a_scale(
    device: CudaDevice, upload: Upload, empty: Empty, download: Download, num_tokens: int
) -> None:
    rng = np.random.default_rng(8)
    head, layer = random_weight("Q8_0", (1001, 192), rng), random_weight("Q8_0", (192, 192), rng)
    on_device, projection = load(device, lambda store: (store.projection([head]), store.projection([layer])))
    x, stream = (rng.normal(size=(num_tokens, 192)).astype(np.float32) for _ in range(2))
    norm = RmsNorm(upload(np.ones(192, np.float32)), 1e-5)
    logits = empty((num_tokens, 1001), np.float32)
    rows = upload(np.arange(num_tokens, dtype=np.int32))
    norm_head(device.context, upload(x), rows, norm, on_device, softcap=1.0, out=logits)
    plain = x / np.sqrt((x.astype(np.float64) ** 2).mean(axis=1, keepdims=True) + 1e-5) @ values_of(head).T
    np.testing.assert_allclose(download(logits), np.tanh(plain), atol=3e-3)
    out, half = upload(stream), x.astype(np.float16)
    linear_norm_residual(device.context, upload(half), projection, norm, scale=0.5, out=out)
    branch = half.astype(np.float64) @ values_of(layer).T
    normed = branch / np.sqrt((branch**2).mean(axis=1, keepdims=True) + 1e-5)
    assert relative(download(out), (stream + normed) / 2) < 1e-3
