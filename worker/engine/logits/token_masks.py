"""Masks of the token ids that constraints allow: written by the host while the device computes the logits."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Series

import numpy as np
from numpy.typing import NDArray

from orcd.errors import OrcdError, places
from worker.engine.sequence import Sequence
from worker.engine.token_constraint import ConstraintBatch, MaskRow


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


def write_masks(sequences: Series[Sequence], rows: Series[int], masks: NDArray[np.uint32]) -> dict[int, OrcdError]:
    """Make ``masks`` [K, `num_mask_words`] those of the K ``rows``, which are indices of ``sequences``.

    Returns the errors of those that can draw nothing, by indices of ``masks``; these allow nothing.
    """
    failures: dict[int, Exception] = {}
    batches: dict[ConstraintBatch | None, list[MaskRow]] = {}
    banned: dict[int, Collection[int]] = {}
    for index, row in enumerate(rows):
        sequence = sequences[row]
        constraint = sequence.constraint
        assert constraint is not None, "a mask for a sequence that draws from all ids"
        batches.setdefault(constraint.batch, []).append(MaskRow(constraint, sequence.num_left, index))
        if sequence.sampling.min_tokens:
            banned[index] = sequence.banned_ids
    for batch, asked in batches.items():
        failures |= _write_alone(asked, masks) if batch is None else batch.write_masks(asked, masks.data)
    errors = {index: constraint_error(failure) for index, failure in failures.items()}
    for index in banned.keys() - errors.keys():
        _ban(banned[index], masks[index])
        if not masks[index].any():
            errors[index] = nothing_left()
    masks[list(errors)] = 0
    return errors


def _write_alone(rows: Series[MaskRow], masks: NDArray[np.uint32]) -> dict[int, Exception]:
    """Write ``masks`` [K, W] of constraints, one after the other; their errors."""
    failures: dict[int, Exception] = {}
    for constraint, num_left, row in rows:
        mask = masks[row]
        mask[:] = 0
        try:
            constraint.write_mask(mask.data, num_left)
        except Exception as failure:
            failures[row] = failure
            continue
        if not mask.any():
            failures[row] = nothing_left()
    return failures


def _ban(token_ids: Collection[int], mask: NDArray[np.uint32]) -> None:
    for token_id in token_ids:
        mask[token_id // 32] &= ~np.uint32(1 << token_id % 32)


def nothing_left() -> OrcdError:
    """What is wrong where no token may come next."""
    return OrcdError("the grammar of this request allows no token that could come next")
