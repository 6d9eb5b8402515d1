"""Runs sequences through an op with a state on a GPU, in steps of any form; what nobody has written is NaN."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from kernels.batch import LayerState, StateRows, Step
from kernels.runtime.device_array import DeviceArray
from tests.kernels.conftest import Download, Empty, Upload

Op = Callable[[DeviceArray, Step[DeviceArray], LayerState[DeviceArray]], DeviceArray]
"""What an op makes of the rows of a step."""


def step_of(
    upload: Upload, counts: Sequence[int], slots: Sequence[int], sources: Sequence[int], *, padding: int = 0
) -> Step[DeviceArray]:
    """A step of so many tokens of each sequence, padded by as many tokens and sequences."""
    num_tokens, ints = sum(counts) + padding, np.int32
    query_starts = np.concatenate([[0], np.cumsum(counts), np.full(padding, sum(counts))]).astype(ints)
    positions = np.concatenate([np.arange(sum(counts)), np.full(padding, -1)]).astype(ints)
    rows = np.concatenate([np.repeat(np.arange(len(counts)), counts), np.zeros(padding)]).astype(ints)
    unread = DeviceArray(0, (0,), np.dtype(ints))
    return Step(
        token_ids=DeviceArray(0, (num_tokens,), np.dtype(ints)),
        positions=upload(positions),
        slots=unread,
        sequence_rows=upload(rows),
        query_starts=upload(query_starts),
        context_lengths=DeviceArray(0, (len(counts) + padding,), np.dtype(ints)),
        sequence_lengths=unread,
        block_tables=unread,
        logit_rows=unread,
        states=StateRows(*(upload(np.array([*each, *[-1] * padding], ints)) for each in (slots, sources))),
    )


class StateSteps:
    """Some sequences, whose states go from slot to slot or stay where they are."""

    def __init__(
        self, op: Op, state: LayerState[DeviceArray], upload: Upload, download: Download, *, in_place: bool = False
    ) -> None:
        self._op = op
        self._state = state
        self._upload = upload
        self._download = download
        self._in_place = in_place
        self._free = list(range(state.inputs.shape[0]))

    def run(self, sequences: Sequence[np.ndarray], steps: Sequence[dict[int, int]], *, padding: int = 0) -> list:
        """Each of ``steps`` computes so many tokens of some ``sequences`` [tokens, width]; all rows of each."""
        num_done, slot_of = [0] * len(sequences), [-1] * len(sequences)
        results: list[list[np.ndarray]] = [[] for _ in sequences]
        for counts in steps:
            sources = [slot_of[member] for member in counts]
            stays = [self._in_place and source >= 0 for source in sources]
            slots = [source if stay else self._free.pop() for source, stay in zip(sources, stays, strict=True)]
            rows = [sequences[member][num_done[member] : num_done[member] + n] for member, n in counts.items()]
            rows.append(np.full((padding, rows[0].shape[1]), np.nan, rows[0].dtype))
            step = step_of(self._upload, list(counts.values()), slots, sources, padding=padding)
            out = self._download(self._op(self._upload(np.concatenate(rows)), step, self._state))
            assert not out[sum(counts.values()) :].any(), "padding is zero"
            first = 0
            for index, (member, count) in enumerate(counts.items()):
                self._free += [sources[index]] if sources[index] >= 0 and not stays[index] else []
                slot_of[member] = slots[index]
                num_done[member] += count
                results[member].append(out[first : first + count])
                first += count
        self._free += [slot for slot in slot_of if slot >= 0]
        return [np.concatenate(parts) for parts in results]


def poisoned_state(empty: Empty, num_slots: int, inputs: tuple[int, int], matrices: tuple[int, ...]) -> LayerState:
    return LayerState(empty((num_slots, *inputs), np.float32), empty((num_slots, *matrices), np.float32))


def ways(lengths: Sequence[int]) -> dict[str, list[dict[int, int]]]:
    """Ways to cut sequences of so many tokens into steps: all must give the same bits as the first, alone."""
    whole = dict(enumerate(lengths))
    first = {number: max(1, length - 7) for number, length in whole.items()}
    rest = [
        {number: 1 for number, length in whole.items() if length - first[number] > done} for done in range(max(lengths))
    ]
    pieces = [
        {number: min(5, length - start) for number, length in whole.items() if length > start}
        for start in range(0, max(lengths), 5)
    ]
    return {
        "alone": [{number: length} for number, length in whole.items()],
        "together": [whole],
        "in pieces": pieces,
        "prefill, then decode": [first, *[step for step in rest if step]],
        "token by token": [
            {number: 1 for number, length in whole.items() if length > done} for done in range(max(lengths))
        ],
    }
