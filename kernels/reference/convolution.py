"""Short causal convolutions: depthwise, and with the last inputs of each sequence as its state."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from kernels.batch import LayerState, Step

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


def short_convolution(
    projected: Float32, taps: Float32, step: Step[Int32], *, out_state: LayerState[Float32], out: Float32
) -> None:
    """C * convolution(B * x) of ``projected`` [T, 3 * H], which is B, C and x side by side (LFM2, Liquid AI, 2025).

    ``taps`` [K, H] and ``out_state`` are as in `causal_convolution`. ``out`` [T, H].
    """
    before, after, x = np.split(projected, 3, axis=1)
    causal_convolution(before * x, taps, step, out_state=out_state, out=out)
    out *= after


def causal_convolution(
    x: Float32, taps: Float32, step: Step[Int32], *, out_state: LayerState[Float32], out: Float32
) -> None:
    """Each channel of ``x`` [T, C] with the K taps of its own in ``taps`` [K, C]; the last tap is the token's itself.

    A sequence's first tokens find those before them in ``out_state``, where its last K - 1 inputs then are. ``out``
    [T, C]. Taps are added from the earliest token to the latest, so that a row does not depend on the others of a step.
    """
    rows, starts = step.states, step.query_starts
    assert rows is not None, "a step of a model with recurrent layers has states"
    histories = read_states(out_state.inputs, rows.sources)
    num_before = histories.shape[1]
    for sequence, (start, end) in enumerate(pairwise(starts)):
        inputs = np.concatenate([histories[sequence], x[start:end]])
        sums = inputs[: end - start] * taps[0]
        for tap in range(1, num_before + 1):
            sums += inputs[tap : tap + end - start] * taps[tap]
        out[start:end] = sums
        out_state.inputs[rows.slots[sequence]] = inputs[end - start :]


def read_states(states: Float32, sources: Int32) -> Float32:
    """A copy of the ``states`` [slots, ...] in the slots ``sources`` [S], of zeros for -1."""
    copies = states[np.maximum(sources, 0)]
    copies[sources < 0] = 0
    return copies
