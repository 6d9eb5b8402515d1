"""What is kept on the device of sequences whose logits are edited before a draw: counts of their tokens, and biases.

Each such sequence has a row of `LogitEdits` from its first draw on (the field ``edit_row`` of its `SamplingRow`). The
op `reset_edits` begins a row with what the host knows of the sequence; from there on the op `sample` counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Generic

import msgspec
import numpy as np
from numpy.typing import NDArray

from kernels.batch import IN_PROMPT, Allocator, Array, LogitEdits, packed_bytes, struct_dtype
from kernels.runtime.cuda_struct import CudaStruct, Float32, Int32

MAX_COUNT = IN_PROMPT - 1
"""Counts of the output end here."""
SHORT_PROMPT = 4096
"""In counts of prompts of so many tokens, and no output, a token may be twice."""


class TokenBias(CudaStruct, source="sampling/sampling"):
    """What is added to the logit of a token."""

    token_id: Int32
    bias: Float32


class EditReset(CudaStruct, source="sampling/sampling"):
    """How a row of `LogitEdits` begins: with which of the counts and of the biases that were sent."""

    row: Int32
    first_count: Int32
    num_counts: Int32
    first_bias: Int32
    num_biases: Int32


class TokenCount(CudaStruct, source="sampling/sampling"):
    """A token of a sequence, and what `LogitEdits.counts` has of it."""

    token_id: Int32
    word: Int32


TOKEN_BIAS = struct_dtype(TokenBias)
TOKEN_COUNT = struct_dtype(TokenCount)
EDIT_RESET = struct_dtype(EditReset)


class EditResets(msgspec.Struct, Generic[Array], frozen=True, eq=False):
    """What the op `reset_edits` is given: how ``R`` rows begin."""

    resets: Array  # [R] EDIT_RESET
    counts: Array  # [C] TOKEN_COUNT; where a row has a token twice, both say the same
    biases: Array  # [B] TOKEN_BIAS


def allocate_edits(memory: Allocator[Array], num_rows: int, vocab_size: int, max_biases: int) -> LogitEdits[Array]:
    """Rows with arbitrary contents: each is to be reset before it is used."""
    return LogitEdits(
        counts=memory.allocate((num_rows, -(-vocab_size // 8) * 8), np.uint16),
        biases=memory.allocate((num_rows, max_biases), TOKEN_BIAS),
    )


def reset_bytes(num_rows: int, num_entries: int) -> int:
    """Bytes that `pack` needs at most for the resets of so many rows with so many counts and biases."""
    assert TOKEN_COUNT.itemsize == TOKEN_BIAS.itemsize
    entries_bytes = num_entries * TOKEN_COUNT.itemsize
    return packed_bytes([num_rows * EDIT_RESET.itemsize, entries_bytes]) + packed_bytes([1])


def count_tokens(prompt_ids: Sequence[int], output_ids: Sequence[int]) -> NDArray[Any]:
    """The counts [C] TOKEN_COUNT of a sequence with this prompt and this output."""
    if (
        not output_ids and len(prompt_ids) <= SHORT_PROMPT
    ):  # as it is with most sequences: it takes a fortieth of the time
        counts = np.empty(len(prompt_ids), TOKEN_COUNT)
        counts["token_id"], counts["word"] = prompt_ids, IN_PROMPT
        return counts
    in_prompt = np.unique(np.array(prompt_ids, np.int32))
    in_output, times = np.unique(np.array(output_ids, np.int32), return_counts=True)
    ids = np.union1d(in_prompt, in_output)
    counts = np.zeros(ids.size, TOKEN_COUNT)
    counts["token_id"] = ids
    counts["word"][np.searchsorted(ids, in_output)] = np.minimum(times, MAX_COUNT)
    counts["word"][np.searchsorted(ids, in_prompt)] |= IN_PROMPT
    return counts


class EditResetList(msgspec.Struct, eq=False):
    """Collects resets of different rows."""

    resets: list[bytes] = []
    counts: list[NDArray[Any]] = []
    biases: list[bytes] = []
    num_counts: int = 0

    @property
    def num_entries(self) -> int:
        """Counts and biases."""
        return self.num_counts + len(self.biases)

    def put(self, row: int, counts: NDArray[Any], biases: Mapping[int, float], banned_ids: Sequence[int]) -> None:
        """``row`` begins with ``counts`` (see `count_tokens`), ``biases`` by token id and ``banned_ids``."""
        num_biases = len(biases) + len(banned_ids)
        self.resets.append(
            EditReset(
                row=row,
                first_count=self.num_counts,
                num_counts=counts.size,
                first_bias=len(self.biases),
                num_biases=num_biases,
            )
        )
        self.counts.append(counts)
        self.num_counts += counts.size
        self.biases += [TokenBias(token_id=token_id, bias=bias) for token_id, bias in biases.items()]
        self.biases += [TokenBias(token_id=token_id, bias=0.0) for token_id in banned_ids]

    def arrays(self) -> EditResets[NDArray[Any]]:
        """All of them."""
        return EditResets(
            resets=np.frombuffer(b"".join(self.resets), EDIT_RESET),
            counts=np.concatenate(self.counts) if self.counts else np.empty(0, TOKEN_COUNT),
            biases=np.frombuffer(b"".join(self.biases), TOKEN_BIAS),
        )
