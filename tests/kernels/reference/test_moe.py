"""kernels.reference.moe against a plain loop over tokens."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.reference.matmul import Linear
from kernels.reference.moe import Expert, Experts, Router, SharedExpert, norm_moe_residual
from kernels.weights.parameters import Clamp, Geglu, RmsNorm
from tests.kernels.reference.test_matmul import make_matrix

HIDDEN, FFN, EXPERTS, USED = 32, 64, 6, 3
CLAMP = Clamp(1.702, 7.0)
RNG = np.random.default_rng(0)


def random_linear(num_outputs: int, num_inputs: int) -> Linear:
    return Linear(make_matrix(RNG.normal(size=(num_outputs, num_inputs))), RNG.normal(size=num_outputs).astype("f4"))


NORM = RmsNorm(np.ones(HIDDEN, np.float32), 1e-5)
ROUTER_LAYER = random_linear(EXPERTS, HIDDEN)
ROUTER = Router(ROUTER_LAYER.matrix, ROUTER_LAYER.bias, USED)
EXPERT_LIST = [
    Expert(random_linear(FFN, HIDDEN), random_linear(FFN, HIDDEN), random_linear(HIDDEN, FFN)) for _ in range(EXPERTS)
]


SHARED = SharedExpert(
    Expert(random_linear(2 * FFN, HIDDEN), random_linear(2 * FFN, HIDDEN), random_linear(HIDDEN, 2 * FFN)),
    RNG.normal(size=HIDDEN).astype(np.float32),
)


def run(
    x: np.ndarray, router: Router = ROUTER, clamp: Clamp | None = CLAMP, shared: SharedExpert | None = None
) -> np.ndarray:
    out = x.copy()
    norm_moe_residual(out, NORM, router, Experts(EXPERT_LIST, shared), clamp, out=out)
    return out


def dense(layer: Linear, x: np.ndarray) -> np.ndarray:
    return layer.matrix.rows(slice(None)).astype(np.float64) @ x + layer.bias


@pytest.mark.parametrize("clamp", [CLAMP, None], ids=["clamped", "plain"])
def test_a_token_gets_the_weighted_sum_of_its_best_experts(clamp: Clamp | None) -> None:
    x = RNG.normal(size=(10, HIDDEN)).astype(np.float32)
    for row, actual in zip(x, run(x, clamp=clamp), strict=True):
        normed = row / np.sqrt((row.astype(np.float64) ** 2).mean() + 1e-5)
        logits = dense(ROUTER_LAYER, normed)
        best = np.argsort(-logits)[:USED]
        routing_weights = np.exp(logits[best]) / np.exp(logits[best]).sum()
        expected = row.astype(np.float64)
        for index, routing_weight in zip(best, routing_weights, strict=True):
            expert = EXPERT_LIST[index]
            gate, up, steepness = dense(expert.gate, normed), dense(expert.up, normed), 1.0
            if clamp:
                gate, up, steepness = np.minimum(gate, 7), np.clip(up, -7, 7) + 1, 1.702
            expected = expected + routing_weight * dense(expert.down, gate / (1 + np.exp(-steepness * gate)) * up)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("shared", [None, SHARED], ids=["chosen", "and shared"])
def test_a_token_has_the_same_bits_alone_and_among_others(shared: SharedExpert | None) -> None:
    x = RNG.normal(size=(40, HIDDEN)).astype(np.float32)
    together = run(x, shared=shared)
    np.testing.assert_array_equal(together, np.concatenate([run(row[None], shared=shared) for row in x]))


def test_a_shared_expert_is_gated_and_the_chosen_ones_may_weigh_as_among_all() -> None:
    x = RNG.normal(size=(10, HIDDEN)).astype(np.float32)
    weights = RNG.normal(size=(EXPERTS, HIDDEN)) / HIDDEN
    router = Router(make_matrix(weights), None, USED, renormalises=False)
    for row, actual in zip(x, run(x, router, None, SHARED), strict=True):
        normed = row / np.sqrt((row.astype(np.float64) ** 2).mean() + 1e-5)
        logits = weights @ normed
        shares = [(EXPERT_LIST[index], np.exp(logits[index]) / np.exp(logits).sum()) for index in range(EXPERTS)]
        chosen = sorted(shares, key=lambda share: -share[1])[:USED]
        expected = row.astype(np.float64)
        for expert, share in [*chosen, (SHARED.network, 1 / (1 + np.exp(-normed @ SHARED.output_gate)))]:
            gate = dense(expert.gate, normed)
            expected += share * dense(expert.down, gate / (1 + np.exp(-gate)) * dense(expert.up, normed))
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)


def test_a_gate_that_is_far_below_0_shuts_the_shared_expert_off_without_a_warning() -> None:
    x = RNG.normal(size=(1, HIDDEN)).astype(np.float32)
    shut = SharedExpert(SHARED.network, -1000 * x[0])
    np.testing.assert_array_equal(run(x, shared=shut), run(x))


def test_of_equal_experts_the_lower_ones_are_chosen() -> None:
    x = RNG.normal(size=(1, HIDDEN)).astype(np.float32)
    zeros = make_matrix(np.zeros((EXPERTS, HIDDEN)))
    low = np.array([0] * USED + [-99] * (EXPERTS - USED), np.float32)
    np.testing.assert_array_equal(run(x, Router(zeros, None, USED)), run(x, Router(zeros, low, USED)))


def test_experts_may_see_another_norm_have_scales_and_be_geglus_whose_sum_is_stored() -> None:
    x = RNG.normal(size=(4, HIDDEN)).astype(np.float32)
    input_weight, scales = RNG.normal(size=HIDDEN).astype(np.float32), RNG.normal(size=EXPERTS).astype(np.float32)
    router = Router(ROUTER_LAYER.matrix, ROUTER_LAYER.bias, USED, input_weight, scales)
    out = np.full_like(x, np.nan)
    norm_moe_residual(x, NORM, router, Experts(EXPERT_LIST), Geglu(0.25), adds=False, out=out)
    for row, actual in zip(x, out, strict=True):
        normed = row / np.sqrt((row.astype(np.float64) ** 2).mean() + 1e-5)
        logits = dense(ROUTER_LAYER, normed)
        best = np.argsort(-logits)[:USED]
        routing_weights = np.exp(logits[best]) / np.exp(logits[best]).sum() * scales[best]
        expected = np.zeros(HIDDEN)
        for index, routing_weight in zip(best, routing_weights, strict=True):
            expert = EXPERT_LIST[index]
            gate, up = (dense(layer, normed * input_weight) for layer in (expert.gate, expert.up))
            gated = 0.125 * gate * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3))) * up
            expected += routing_weight * dense(expert.down, gated)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-3)
