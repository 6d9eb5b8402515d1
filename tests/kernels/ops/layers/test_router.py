"""kernels.ops.layers.router: the kernels for so many tokens, and the same bits in all of them."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.devices.cuda import CudaDevice
from kernels.ops.layers.router import logits_shape, route
from kernels.runtime.gpu_spec import H100
from kernels.weights.parameters import LayerNorm, RmsNorm
from tests.kernels.conftest import Download, Upload
from tests.kernels.ops.random_weights import random_weight
from tests.kernels.ops.test_matmul import load


@pytest.mark.parametrize(
    ("num_tokens", "width", "num_experts", "kernel", "grid", "block_experts"),
    [
        (5, 2048, 128, "moe_logits_most", (1, 64), 2),
        (32, 2880, 32, "moe_logits_most_wide", (4, 16), 2),
        (64, 2048, 128, "moe_logits_most", (4, 32), 4),
        (256, 2048, 128, "moe_logits_most", (16, 8), 16),
        (8192, 2048, 128, "moe_logits_most", (512, 1), 128),
        (256, 2880, 32, "moe_logits_most_wide", (32, 4), 8),
        (512, 2880, 32, "moe_logits_most_wide", (64, 2), 16),
        (8192, 2880, 32, "moe_logits_most_wide", (1024, 1), 32),
        (256, 4096, 8, "moe_logits_many", (32, 1), 8),
        (256, 16384, 8, "moe_logits_pairs", (128, 1), 8),
    ],
)
def test_blocks_share_out_tokens_and_experts(
    num_tokens: int, width: int, num_experts: int, kernel: str, grid: tuple[int, int], block_experts: int
) -> None:
    shape = logits_shape(H100, num_tokens, width, num_experts)
    assert (shape.kernel, shape.grid, shape.block_experts) == (kernel, grid, block_experts)


@pytest.mark.gpu
@pytest.mark.sanitize("False-2048-256")
@pytest.mark.parametrize(("width", "num_experts"), [(2048, 256), (1536, 33), (2880, 32)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_the_router_gives_the_same_bits_in_every_batch(
    device: CudaDevice, upload: Upload, download: Download, width: int, num_experts: int, has_bias: bool
) -> None:
    """With an RMS norm and a layer norm."""
    rng = np.random.default_rng(width)
    num_tokens = 16 * device.context.gpu.num_sms + 11
    weight = random_weight("F32", (num_experts, width), rng, bias=True)
    router = load(device, lambda store: store.router(weight, 8))
    norm_weight, bias = (upload(rng.normal(mean, 0.1, width).astype(np.float32)) for mean in (1, 0))
    norm = LayerNorm(norm_weight, bias, 1e-5) if has_bias else RmsNorm(norm_weight, 1e-5)
    x = rng.normal(size=(num_tokens, width)).astype(np.float32)
    found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for count in (1, 4, 5, 27, 64, 200, 1100, num_tokens):
        normed = upload(np.full((count, width), np.nan, np.float16))
        routing = route(device.context, upload(x[:count]), norm, router, normed, None)
        found[count] = download(routing.logits), download(normed)
        if count > 4:
            in_order = np.argsort(-found[count][0], axis=1, kind="stable")[:, :8]
            np.testing.assert_array_equal(download(routing.experts), in_order)
    for count, arrays in found.items():
        for array, expected in zip(arrays, found[num_tokens], strict=True):
            np.testing.assert_array_equal(array, expected[:count])
