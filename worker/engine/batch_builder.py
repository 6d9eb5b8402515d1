"""Builds the batch of a planned step: NumPy arrays for the model, and for the draws after it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from kernels.batch import Draws, Step
from worker.engine.scheduler import Chunk
from worker.engine.sequence import Sequence

KEYS = (1 << 64) - 1  # all the bits of a key


def build_step(chunks: list[Chunk], block_tokens: int, draw_of: Callable[[Sequence], int] | None = None) -> Step:
    """The step of ``chunks``, which have not been counted as launched.

    An id that the host does not know is -1 - ``draw_of`` its sequence, the draw of the previous step that gives it.
    """
    starts = np.array([sequence.num_computed for sequence, _, _ in chunks], np.int32)
    counts = np.array([num_tokens for _, num_tokens, _ in chunks], np.int32)
    query_starts = np.zeros(len(chunks) + 1, np.int32)
    np.cumsum(counts, out=query_starts[1:])
    rows = np.repeat(np.arange(len(chunks), dtype=np.int32), counts)
    positions = np.arange(query_starts[-1], dtype=np.int32) + (starts - query_starts[:-1])[rows]
    block_tables = np.zeros((len(chunks), max(len(chunk.sequence.block_ids) for chunk in chunks)), np.int32)
    token_ids: list[int] = []
    for row, (sequence, num_tokens, _) in enumerate(chunks):
        block_tables[row, : len(sequence.block_ids)] = sequence.block_ids
        start, end = sequence.num_computed, sequence.num_computed + num_tokens
        token_ids += sequence.token_ids[start:end]
        if end > len(sequence.token_ids):
            assert draw_of is not None, "an id that only the device knows"
            token_ids.append(-1 - draw_of(sequence))
    return Step(
        token_ids=np.array(token_ids, np.int32),
        positions=positions,
        slots=block_tables[rows, positions // block_tokens] * block_tokens + positions % block_tokens,
        sequence_rows=rows,
        query_starts=query_starts,
        context_lengths=starts + counts,
        sequence_lengths=np.array([sequence.num_tokens for sequence, _, _ in chunks], np.int32),
        block_tables=block_tables,
        logit_rows=query_starts[1:][[draws for _, _, draws in chunks]] - 1,
    )


def build_draws(sequences: list[Sequence]) -> Draws:
    """How the next token of each is drawn."""
    options = [sequence.sampling for sequence in sequences]
    return Draws(
        temperature=np.array([option.temperature for option in options], np.float32),
        top_k=np.array([option.top_k for option in options], np.int32),
        top_p=np.array([option.top_p for option in options], np.float32),
        min_p=np.array([option.min_p for option in options], np.float32),
        keys=np.array([draw_key(sequence) for sequence in sequences], np.uint64),
        output_positions=np.array([sequence.num_output for sequence in sequences], np.int64),
    )


def draw_key(sequence: Sequence) -> int:
    """The key of its random numbers: choices of a request draw with consecutive seeds."""
    return (sequence.sampling.seed + sequence.choice) & KEYS
