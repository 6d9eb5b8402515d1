"""Steps that are sent whole, padded to one of few sizes: for each there can be a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.batch import (
    GREEDY_ROW,
    SAMPLING_ROW,
    SHORT_CHUNK,
    LogitEdits,
    SamplingParams,
    Step,
    first,
    packed_bytes,
    view,
)
from kernels.ops.attention_parts.prefix_attention import MAX_GROUPS
from kernels.runtime.device_array import DeviceArray
from worker.engine.batch_builder import build_sampling_row, known_ids, slots_of, state_row
from worker.engine.cuda.buffers import StepLimits
from worker.engine.cuda.step_arrays import arrays_of, step_of
from worker.engine.sequence import Chunk, Sequence

MOST_TOKENS = 4096
"""Steps of more take the device longer than the host takes to launch their kernels."""
LEAST_TOKENS, MOST_PADDING = 16, 256
SEQUENCES = (1, 4, 16, 64, 128)
BLOCKS = (64, 256, 1024, 4096)

_GREEDY = np.frombuffer(GREEDY_ROW, SAMPLING_ROW)[0]
_INT32 = np.dtype(np.int32)


class StepSize(NamedTuple):
    """What a step is padded to. It has more tokens than sequences, which tells it from a decode step."""

    num_tokens: int
    num_sequences: int
    max_blocks: int
    shares: bool = False
    """Whether it has prefix groups."""
    has_short_chunks: bool = True
    """See `kernels.batch.Step`."""


def size_for(step: Step[NDArray[Any]], limits: StepLimits) -> StepSize | None:
    """The smallest size for ``step``, None if it is too large for one."""
    shape = step.token_ids.size, step.context_lengths.size, step.block_tables.shape[1]
    return _size_for(*shape, step.prefixes is not None, step.has_short_chunks, limits)


def size_for_chunk(chunk: Chunk, limits: StepLimits) -> StepSize | None:
    """The same of a step that has one chunk."""
    sequence, num_tokens, _ = chunk
    return _size_for(num_tokens, 1, len(sequence.block_ids), False, num_tokens <= SHORT_CHUNK, limits)


@lru_cache(4096)
def _size_for(
    num_tokens: int, num_sequences: int, max_blocks: int, shares: bool, has_short_chunks: bool, limits: StepLimits
) -> StepSize | None:
    num_sequences = _at_least(num_sequences, (*SEQUENCES, limits.max_sequences))
    num_tokens = _round_tokens(max(num_tokens, num_sequences + 1))
    if num_tokens > min(MOST_TOKENS, limits.step_tokens):
        return None
    max_blocks = _at_least(max_blocks, (*BLOCKS, limits.max_blocks))
    return StepSize(num_tokens, num_sequences, max_blocks, shares, has_short_chunks)


def _at_least(number: int, choices: tuple[int, ...]) -> int:
    """The smallest of ``choices``, in any order, that is as large; one of them must be."""
    return min(choice for choice in choices if choice >= number)


def _round_tokens(number: int) -> int:
    """So that at most a quarter of a step is padding, or less than `LEAST_TOKENS`, and never `MOST_PADDING`."""
    unit = min(max(LEAST_TOKENS, (1 << (number - 1).bit_length()) // 8), MOST_PADDING)
    return -(-number // unit) * unit


class PaddedStep:
    """Where the arrays of steps of one size are, in a buffer of bytes on the device and in what is copied to it."""

    def __init__(
        self, size: StepSize, whole: DeviceArray, edits: LogitEdits[DeviceArray], *, has_states: bool = False
    ) -> None:
        """``has_states``: whether the model has recurrent layers."""
        tokens, sequences = (size.num_tokens,), (size.num_sequences,)
        self._arrays: dict[str, tuple[int, tuple[int, ...], np.dtype[Any], Any]] = {}  # offset, shape, dtype, padding
        # The same in each buffer that is copied to the device, as NumPy takes long to make them.
        self._targets: dict[int, dict[str, NDArray[Any]]] = {}
        self.num_bytes = 0
        self._add("token_ids", tokens, _INT32, 0)
        self._add("positions", tokens, _INT32, -1)
        self._add("slots", tokens, _INT32, -1)
        self._add("sequence_rows", tokens, _INT32, 0)
        self._add("query_starts", (size.num_sequences + 1,), _INT32, None)
        self._add("context_lengths", sequences, _INT32, 0)
        self._add("sequence_lengths", sequences, _INT32, 0)
        self._add("logit_rows", sequences, _INT32, 0)
        self._add("rows", sequences, SAMPLING_ROW, _GREEDY)
        self._add("output_positions", sequences, np.dtype(np.int64), 0)
        if has_states:
            self._add("state_slots", sequences, _INT32, -1)
            self._add("state_sources", sequences, _INT32, -1)
        if size.shares:
            self._add("groups", (MAX_GROUPS, 3), _INT32, 0)
            self._add("members", sequences, _INT32, 0)
        self._add("block_tables", (size.num_sequences, size.max_blocks), _INT32, None)
        views = {name: view(whole, offset, shape, dtype) for name, (offset, shape, dtype, _) in self._arrays.items()}
        self._rows_start = self._arrays["rows"][0]
        self.memory = first(whole, self.num_bytes)
        self.params = SamplingParams(views.pop("rows"), views.pop("output_positions"), edits)
        self.step = step_of(views, has_short_chunks=size.has_short_chunks)

    def _add(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], padding: Any) -> None:
        self._arrays[name] = self.num_bytes, shape, dtype, padding
        self.num_bytes += packed_bytes([int(np.prod(shape)) * dtype.itemsize])

    def write(self, step: Step[NDArray[Any]], params: SamplingParams[NDArray[Any]], staging: NDArray[np.uint8]) -> None:
        """Write ``step`` and how its tokens are drawn into the first `num_bytes` of ``staging``.

        That is an array which stays: there is a view of it for each of those here.
        """
        sources = arrays_of(step) | {"rows": params.rows, "output_positions": params.output_positions}
        for name, target in self._targets_in(staging).items():
            source = sources[name]
            if name == "block_tables":
                target[: source.shape[0], : source.shape[1]] = source  # what is not written is not read
                continue
            target[: len(source)] = source
            if len(source) < len(target):
                padding = self._arrays[name][-1]
                target[len(source) :] = source[-1] if name == "query_starts" else padding

    def write_chunk(
        self, chunk: Chunk, edit_row_of: Callable[[Sequence], int], block_tokens: int, staging: NDArray[np.uint8]
    ) -> None:
        """`write` a step of one chunk whose ids are known, without making it first: in a third of the time.

        The device waits for that of an idle engine's only request. ``edit_row_of``: see `build_sampling_params`.
        """
        targets = self._targets_in(staging)
        sequence, num_tokens, draws = chunk
        start, block_ids = sequence.num_computed, np.array(sequence.block_ids, np.int32)
        end = start + num_tokens
        for name, source, padding in (
            ("token_ids", known_ids(sequence, start, end), 0),
            ("positions", np.arange(start, end, dtype=np.int32), -1),
            ("slots", slots_of(block_ids, start, end, block_tokens), -1),
        ):
            target = targets[name]
            target[:num_tokens] = source
            if num_tokens < len(target):
                target[num_tokens:] = padding
        targets["sequence_rows"].fill(0)
        starts = targets["query_starts"]
        starts[0], starts[1] = 0, num_tokens
        targets["context_lengths"][0] = end
        targets["sequence_lengths"][0] = sequence.num_tokens
        targets["logit_rows"][0] = num_tokens - 1 if draws else 0
        row = build_sampling_row(sequence, edit_row_of(sequence)) if draws else GREEDY_ROW
        staging[self._rows_start : self._rows_start + len(row)] = np.frombuffer(row, np.uint8)
        targets["output_positions"][0] = sequence.num_output if draws else 0
        if self.step.states is not None:
            targets["state_slots"][0], targets["state_sources"][0] = state_row(sequence)
        targets["block_tables"][0, : block_ids.size] = block_ids

    def _targets_in(self, staging: NDArray[np.uint8]) -> dict[str, NDArray[Any]]:
        targets = self._targets.get(id(staging))
        if targets is None:
            targets = self._targets[id(staging)] = {
                name: view(staging, offset, shape, dtype) for name, (offset, shape, dtype, _) in self._arrays.items()
            }
        return targets
