"""Runs sequences through an op with a state: in steps of any form, over slots where everything unread is NaN."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from kernels.batch import LayerState, StateRows, Step

Op = Callable[[np.ndarray, Step, LayerState], np.ndarray]
"""What an op makes of the rows of a step."""


def step_of(counts: Sequence[int], slots: Sequence[int], sources: Sequence[int]) -> Step[np.ndarray]:
    """A step of so many tokens of each sequence; ops with a state look at nothing else of it."""
    query_starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    unread = np.zeros(0, np.int32)
    rows = StateRows(np.array(slots, np.int32), np.array(sources, np.int32))
    return Step(unread, unread, unread, unread, query_starts, unread, unread, unread, unread, states=rows)


def poisoned_state(num_slots: int, inputs: tuple[int, int], matrices: tuple[int, int, int]) -> LayerState:
    return LayerState(
        np.full((num_slots, *inputs), np.nan, np.float32), np.full((num_slots, *matrices), np.nan, np.float32)
    )


def in_steps(op: Op, sequences: Sequence[np.ndarray], state: LayerState, steps: Sequence[dict[int, int]]) -> list:
    """Each of ``steps`` computes so many tokens of some sequences; all rows of each sequence, one after the other.

    A sequence's state goes from slot to slot: what it was is read from the slot where the step before has left it.
    """
    num_done, slot_of = [0] * len(sequences), [-1] * len(sequences)
    free = list(range(state.inputs.shape[0]))
    results: list[list[np.ndarray]] = [[] for _ in sequences]
    for counts in steps:
        slots = [free.pop() for _ in counts]
        step = step_of(list(counts.values()), slots, [slot_of[member] for member in counts])
        rows = [sequences[member][num_done[member] : num_done[member] + n] for member, n in counts.items()]
        out = op(np.concatenate(rows), step, state)
        for index, (member, count) in enumerate(counts.items()):
            free += [slot_of[member]] if slot_of[member] >= 0 else []
            slot_of[member] = slots[index]
            num_done[member] += count
            results[member].append(out[step.query_starts[index] : step.query_starts[index + 1]])
    return [np.concatenate(parts) for parts in results]
