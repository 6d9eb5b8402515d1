"""kernels.ops.layers.routed_matmul on dry contexts: what one token launches; numbers are those of test_moe.py."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from kernels.ops.layers.routed_matmul import in_halves
from kernels.ops.matmul_tuning import small_batch_shape
from kernels.ops.moe import norm_moe_residual
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import A100, H100, GpuSpec
from kernels.runtime.launcher import Context
from kernels.weights.packed import Experts, PackedMatrix, Projection, Router, SharedExpert
from kernels.weights.parameters import RmsNorm
from tests.kernels.ops.test_matmul_tuning import matrix

WIDTH, INNER, NUM_EXPERTS, NUM_USED = 2048, 512, 256, 8


def array(dtype: Any, *shape: int) -> DeviceArray:
    return DeviceArray(0, shape, np.dtype(dtype))


def launched(gpu: GpuSpec, name: str, shared_name: str, num_tokens: int = 1) -> list[tuple[str, tuple[int, ...]]]:
    """Names and grids, of experts with a shared one in tensor types of these names."""

    def gated(name: str, num_experts: int) -> PackedMatrix:
        return replace(matrix(name, 2 * INNER, WIDTH), num_experts=num_experts, gated=True)

    down = replace(matrix(name, WIDTH, INNER), num_experts=NUM_EXPERTS)
    own_down = matrix(shared_name, WIDTH, INNER)
    shared = SharedExpert(Projection((gated(shared_name, 1),)), Projection((own_down,)), array(np.float32, WIDTH))
    router = Router(
        array(np.float32, NUM_EXPERTS, WIDTH), array(np.float32, NUM_EXPERTS), array(np.uint32, 256), NUM_USED
    )
    launches: list[tuple[str, tuple[int, ...]]] = []
    context = Context(gpu)
    context.launch = lambda _, kernel, grid, *args, **rest: launches.append((kernel, grid))  # type: ignore[method-assign]
    x, norm = array(np.float32, num_tokens, WIDTH), RmsNorm(array(np.float32, WIDTH), 1e-6)
    norm_moe_residual(context, x, norm, router, Experts((gated(name, NUM_EXPERTS),), down, shared), None, out=x)
    return launches


@pytest.mark.parametrize("name", ["Q4_K", "Q6_K"])
def test_a_shared_expert_like_the_others_takes_one_token_no_kernel_of_its_own(name: str) -> None:
    logits, gate_up, summed = launched(H100, name, name)
    assert logits == ("moe_logits", (NUM_EXPERTS + 1, 1))
    assert gate_up[0] == "matmul_gemv_routed" and gate_up[1][1:] == (NUM_USED + 1, 1)
    assert summed[0] == "matmul_gemv_summed"


@pytest.mark.parametrize(
    ("gpu", "shared_name", "num_tokens"), [(H100, "Q8_0", 1), (H100, "MXFP4", 1), (A100, "Q4_K", 1), (H100, "Q4_K", 2)]
)
def test_any_other_is_multiplied_apart(gpu: GpuSpec, shared_name: str, num_tokens: int) -> None:
    launches = launched(gpu, "Q4_K", shared_name, num_tokens)
    assert launches[0] == ("moe_logits", (NUM_EXPERTS, num_tokens))
    assert "shared_expert_gate" in [kernel for kernel, _ in launches]


@pytest.mark.parametrize(
    ("gpu", "name", "num_tokens", "router", "products"),
    [
        (H100, "Q4_K", 32, "moe_logits_most", "matmul_grouped"),
        (H100, "Q4_K", 64, "moe_logits_most", "matmul_grouped"),
        (H100, "Q6_K", 8192, "moe_logits_most", "matmul_tiled_experts_128"),
        (H100, "Q8_0", 8192, "moe_logits_most", "matmul_tiled_128"),
        (H100, "MXFP4", 64, "moe_logits_most", "matmul_tiled_16"),
        (H100, "MXFP4", 8192, "moe_logits_most", "matmul_grouped"),
        (A100, "MXFP4", 8192, "moe_logits_most", "matmul_tiled_128"),
        (A100, "Q4_K", 64, "moe_logits_most", "matmul_tiled_16"),
    ],
)
def test_many_tokens_take_kernels_for_the_weights_and_the_gpu(
    gpu: GpuSpec, name: str, num_tokens: int, router: str, products: str
) -> None:
    launches = launched(gpu, name, name, num_tokens)
    assert launches[0][0] == router
    experts = [kernel for kernel, _ in launches if kernel.startswith(("matmul_tiled", "matmul_grouped"))]
    assert experts[:2] == [products] * 2


@pytest.mark.parametrize(
    ("gpu", "name", "num_rows", "num_products", "found"),
    [
        (H100, "Q4_K", 1536, 8, (32, 3, 12)),  # Qwen3-30B-A3B
        (H100, "Q4_K", 1024, 9, (14, 3, 24)),  # two rounds
        (H100, "Q4_K", 1536, 6, (20, 5, 20)),  # an odd number of tiles
        (H100, "Q6_K", 1536, 8, (16, 3, 12)),  # no registers for 24 warps
        (A100, "Q4_K", 1536, 8, (13, 4, 16)),
    ],
)
def test_gates_have_two_blocks_an_sm_where_these_share_it_evenly(
    gpu: GpuSpec, name: str, num_rows: int, num_products: int, found: tuple[int, int, int]
) -> None:
    gates = replace(matrix(name, num_rows, WIDTH), num_experts=128, gated=True)
    shape = in_halves(gpu, gates, small_batch_shape(gpu, gates, 1, num_products=num_products))
    assert (shape.num_blocks, shape.tiles_at_once, shape.num_warps) == found
    blocks_per_sm = 2 if shape.num_blocks * num_products > gpu.num_sms else 1
    assert blocks_per_sm * (shape.shared_bytes + 1024) <= gpu.shared_bytes + 1024
