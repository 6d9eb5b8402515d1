"""kernels.reference.convolution against loops in float64."""

from __future__ import annotations

import numpy as np
import pytest

from kernels.batch import LayerState, Step
from kernels.reference.convolution import causal_convolution, read_states, short_convolution
from tests.kernels.reference.recurrence import Op, in_steps, poisoned_state, step_of


def expected(x: np.ndarray, taps: np.ndarray) -> np.ndarray:
    """Of one sequence; before its first token there are zeros."""
    (length, channels), num_taps = x.shape, taps.shape[0]
    out = np.zeros((length, channels))
    for position in range(length):
        for channel in range(channels):
            for tap in range(num_taps):
                token = position - (num_taps - 1 - tap)
                if token >= 0:
                    out[position, channel] += float(x[token, channel]) * float(taps[tap, channel])
    return out


def convolution_with(taps: np.ndarray) -> Op:
    def run(x: np.ndarray, step: Step, state: LayerState) -> np.ndarray:
        out = np.full(x.shape, np.nan, np.float32)
        causal_convolution(x, taps, step, out_state=state, out=out)
        return out

    return run


@pytest.mark.parametrize("num_taps", [1, 2, 3, 4, 7])
def test_a_convolution_looks_back_over_steps(num_taps: int) -> None:
    rng = np.random.default_rng(num_taps)
    taps = rng.normal(size=(num_taps, 5)).astype(np.float32)
    sequences = [rng.normal(size=(length, 5)).astype(np.float32) for length in (1, 9, 13)]
    steps = [{1: 2, 0: 1}, {2: 1, 1: 1}, {1: 1, 2: 11}, {2: 1, 1: 5}]
    found = in_steps(convolution_with(taps), sequences, poisoned_state(6, (num_taps - 1, 5), (0, 0, 0)), steps)
    for x, out in zip(sequences, found, strict=True):
        np.testing.assert_allclose(out, expected(x, taps), rtol=1e-5, atol=1e-6)
    whole = in_steps(
        convolution_with(taps), sequences, poisoned_state(6, (num_taps - 1, 5), (0, 0, 0)), [{0: 1}, {1: 9}, {2: 13}]
    )
    for one, other in zip(found, whole, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_short_convolution_is_gated_before_and_after() -> None:
    rng = np.random.default_rng(0)
    projected, taps = rng.normal(size=(7, 9)).astype(np.float32), rng.normal(size=(4, 3)).astype(np.float32)

    def run(x: np.ndarray, step: Step, state: LayerState) -> np.ndarray:
        out = np.empty((x.shape[0], 3), np.float32)
        short_convolution(x, taps, step, out_state=state, out=out)
        return out

    [out] = in_steps(run, [projected], poisoned_state(2, (3, 3), (0, 0, 0)), [{0: 6}, {0: 1}])
    before, after, x = projected[:, :3], projected[:, 3:6], projected[:, 6:]
    np.testing.assert_allclose(out, after * expected(before * x, taps), rtol=1e-4, atol=1e-6)


def test_a_state_may_be_read_by_several_and_stays_as_it_was() -> None:
    taps, state = np.ones((3, 2), np.float32), poisoned_state(4, (2, 2), (0, 0, 0))
    run, x = convolution_with(taps), np.arange(10, dtype=np.float32).reshape(5, 2)
    [alone] = in_steps(run, [x], poisoned_state(2, (2, 2), (0, 0, 0)), [{0: 5}])
    state.inputs[0] = x[1:3]  # as three tokens have left it
    before = state.inputs[0].copy()
    out = run(np.concatenate([x[3:], x[3:]]), step_of([2, 2], [1, 3], [0, 0]), state)
    np.testing.assert_array_equal(out, np.concatenate([alone[3:], alone[3:]]))
    np.testing.assert_array_equal(state.inputs[0], before)
    assert np.isnan(state.inputs[2]).all()


def test_a_sequence_without_a_state_begins_with_zeros() -> None:
    states = np.full((2, 3), np.nan, np.float32)
    states[1] = 5
    copies = read_states(states, np.array([-1, 1], np.int32))
    np.testing.assert_array_equal(copies, [[0, 0, 0], [5, 5, 5]])
    copies[:] = 1
    assert states[1, 0] == 5
