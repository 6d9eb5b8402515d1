"""kernels.reference.delta_net against loops in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from kernels.batch import LayerState, Step
from kernels.reference.delta_net import delta_rule, gated_delta_net
from kernels.weights.parameters import DeltaNet, HeadOrder, RmsNorm
from tests.kernels.reference.recurrence import Op, in_steps, poisoned_state, step_of


def random_net(key_heads: int, value_heads: int, key_dim: int, value_dim: int, order: HeadOrder = "tiled") -> DeltaNet:
    rng = np.random.default_rng(key_dim)

    def normal(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    channels = 2 * key_heads * key_dim + value_heads * value_dim
    return DeltaNet(
        num_key_heads=key_heads,
        num_value_heads=value_heads,
        key_dim=key_dim,
        value_dim=value_dim,
        head_order=order,
        taps=normal(4, channels),
        decay=-np.exp(normal(value_heads)),
        time_bias=normal(value_heads),
        norm=RmsNorm(normal(value_dim), 1e-5),
    )


def op_of(net: DeltaNet) -> Op:
    def run(projected: np.ndarray, step: Step, state: LayerState) -> np.ndarray:
        out = np.full((projected.shape[0], net.value_width), np.nan, np.float32)
        gated_delta_net(projected, net, step, out_state=state, out=out)
        return out

    return run


def poisoned(net: DeltaNet, num_slots: int) -> LayerState:
    return poisoned_state(
        num_slots, (net.taps.shape[0] - 1, net.channels), (net.num_value_heads, net.key_dim, net.value_dim)
    )


def silu(x: float) -> float:
    return x / (1 + math.exp(-x))


def convolved(rows: np.ndarray, net: DeltaNet, position: int) -> np.ndarray:
    num_taps = net.taps.shape[0]
    first = max(0, position - num_taps + 1)
    window, taps = rows[first : position + 1, : net.channels], net.taps[num_taps - (position + 1 - first) :]
    return np.array([silu(float(window[:, channel] @ taps[:, channel])) for channel in range(net.channels)])


def expected(projected: np.ndarray, net: DeltaNet) -> np.ndarray:
    """What one sequence gives, a head at a time."""
    rows = projected.astype(np.float64)
    out = np.zeros((rows.shape[0], net.value_width))
    key_width, group = net.num_key_heads * net.key_dim, net.num_value_heads // net.num_key_heads
    for head in range(net.num_value_heads):
        source = head % net.num_key_heads if net.head_order == "tiled" else head // group
        state = np.zeros((net.key_dim, net.value_dim))
        for position, row in enumerate(rows):
            mixed = convolved(rows, net, position)
            query, key = (mixed[start + source * net.key_dim :][: net.key_dim] for start in (0, key_width))
            query, key = (x / math.sqrt(x @ x + 1e-6) for x in (query, key))
            value = mixed[2 * key_width + head * net.value_dim :][: net.value_dim]
            z = row[net.channels + head * net.value_dim :][: net.value_dim]
            beta, alpha = row[net.channels + net.value_width :].reshape(2, -1)[:, head]
            state *= math.exp(net.decay[head] * math.log1p(math.exp(alpha + net.time_bias[head])))
            state += np.outer(key, (value - state.T @ key) / (1 + math.exp(-beta)))
            answer = state.T @ query / math.sqrt(net.key_dim)
            answer = answer / math.sqrt(np.mean(answer**2) + net.norm.epsilon) * net.norm.weight
            out[position, head * net.value_dim :][: net.value_dim] = answer * [silu(x) for x in z]
    return out


SHAPES = [(1, 1, 1, 1), (2, 2, 5, 5), (1, 3, 7, 3), (2, 6, 4, 9), (3, 6, 16, 16)]


@pytest.mark.parametrize("order", ["tiled", "grouped"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_what_loops_give(shape: tuple[int, int, int, int], order: HeadOrder) -> None:
    net = random_net(*shape, order)
    projected = np.random.default_rng(1).normal(size=(11, net.projected_width)).astype(np.float32)
    [out] = in_steps(op_of(net), [projected], poisoned(net, 2), [{0: 11}])
    np.testing.assert_allclose(out, expected(projected, net), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("shape", [*SHAPES, (4, 8, 64, 64)], ids=str)
def test_a_sequence_gives_the_same_bits_in_whatever_steps_and_company_it_comes(
    shape: tuple[int, int, int, int],
) -> None:
    net, rng = random_net(*shape), np.random.default_rng(2)
    sequences = [3 * rng.normal(size=(length, net.projected_width)).astype(np.float32) for length in (5, 17, 40)]
    alone = in_steps(op_of(net), sequences, poisoned(net, 3), [{0: 5}, {1: 17}, {2: 40}])
    steps = [{2: 3, 0: 1}, {1: 16, 0: 1, 2: 16}, {0: 1, 2: 1, 1: 1}, {0: 2, 2: 20}]
    together = in_steps(op_of(net), sequences, poisoned(net, 6), steps)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_state_may_be_read_by_several_and_stays_as_it_was() -> None:
    net = random_net(2, 4, 8, 8)
    projected = np.random.default_rng(3).normal(size=(9, net.projected_width)).astype(np.float32)
    state, op = poisoned(net, 5), op_of(net)
    op(projected[:6], step_of([6], [2], [-1]), state)
    before = [array[2].copy() for array in state]
    out = op(np.concatenate([projected[6:]] * 2), step_of([3, 3], [0, 4], [2, 2]), state)
    [whole] = in_steps(op, [projected], poisoned(net, 2), [{0: 9}])
    np.testing.assert_array_equal(out, np.concatenate([whole[6:]] * 2))
    for array, was in zip(state, before, strict=True):
        np.testing.assert_array_equal(array[2], was)
        assert np.isnan(array[[1, 3]]).all()


def test_large_numbers_do_not_overflow() -> None:
    net = random_net(1, 2, 4, 4)
    projected = np.full((3, net.projected_width), 1e4, np.float32)
    with np.errstate(all="raise", under="ignore"):
        [out] = in_steps(op_of(net), [projected], poisoned(net, 2), [{0: 3}])
    assert np.isfinite(out).all()


def test_without_tokens_nothing_moves() -> None:
    empty = np.zeros((0, 2, 3), np.float32)
    states = np.ones((1, 2, 3, 3), np.float32)
    starts = np.array([0, 0], np.int32)
    rates = np.zeros((0, 2), np.float32)
    assert delta_rule(empty, empty, empty, decay=rates, rates=rates, query_starts=starts, states=states).shape == (
        0, 2, 3,
    )  # fmt: skip
    assert (states == 1).all()
