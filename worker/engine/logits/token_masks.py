"""Masks of the token ids that constraints allow: written by the host while the device computes the logits."""

from __future__ import annotations

import os
from collections.abc import Sequence as Series
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from orcd.errors import OrcdError, places
from worker.engine.sequence import Sequence

MAX_THREADS = 8
ROWS_PER_THREAD = 8
"""With fewer rows for each, another thread costs more than it saves."""


def num_mask_words(vocab_size: int) -> int:
    """Words of 32 bits in a mask."""
    return -(-vocab_size // 32)


def constrained_rows(sequences: Series[Sequence]) -> list[int]:
    """The rows of logits whose sequences have a constraint."""
    return [row for row, sequence in enumerate(sequences) if sequence.constraint is not None]


def constraint_error(error: Exception) -> OrcdError:
    """What a constraint raised, as an error of its request; other exceptions' texts may hold what users wrote."""
    if isinstance(error, OrcdError):
        return error
    return OrcdError(f"the grammar of this request failed: {type(error).__name__} at {places(error)[-1]}")


class TokenMasks:
    """Has constraints write their masks, on several threads where there are many: they need no interpreter lock."""

    def __init__(self) -> None:
        self._num_threads = max(1, min(MAX_THREADS, (os.cpu_count() or 1) // 2))
        self._pool = ThreadPoolExecutor(self._num_threads, "token-masks")  # has no thread before the first task

    def write(self, sequences: Series[Sequence], rows: Series[int], masks: NDArray[np.uint32]) -> dict[int, OrcdError]:
        """Make ``masks`` [K, `num_mask_words`] those of the K ``rows``, which are indices of ``sequences``.

        Returns the errors of rows that can draw nothing; their masks allow nothing.
        """
        errors: dict[int, OrcdError] = {}
        pending = iter(list(zip(rows, masks, strict=True)))  # threads share it: each takes the next one when it is free

        def write_pending() -> None:
            for row, mask in pending:
                error = _write_mask(sequences[row], mask)
                if error is not None:
                    errors[row] = error

        num_helpers = min(self._num_threads, len(rows) // ROWS_PER_THREAD) - 1
        helpers = [self._pool.submit(write_pending) for _ in range(num_helpers)]
        write_pending()
        for helper in helpers:
            helper.result()
        return errors


def _write_mask(sequence: Sequence, mask: NDArray[np.uint32]) -> OrcdError | None:
    """Make ``mask`` that of a sequence; returns what is wrong if it allows nothing that can be drawn."""
    constraint = sequence.constraint
    assert constraint is not None, "a mask for a sequence that draws from all ids"
    mask[:] = 0
    try:
        constraint.write_mask(mask.data, sequence.num_left)
    except Exception as error:
        mask[:] = 0
        return constraint_error(error)
    for token_id in sequence.banned_ids:
        mask[token_id // 32] &= ~np.uint32(1 << token_id % 32)
    if not mask.any():
        return OrcdError("the grammar of this request allows no token that could come next")
    return None
