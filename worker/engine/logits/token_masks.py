"""Masks of the token ids that constraints allow: asked for while the device computes the logits."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Series
from typing import TypeVar

import numpy as np

from orcd.errors import OrcdError, places
from worker.engine.sequence import Sequence
from worker.engine.token_constraint import Asked, ConstraintBatch, Drawn, TokenConstraint, TokenMask

Each = TypeVar("Each", Asked, Drawn)


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


def masks_of(sequences: Series[Sequence], num_words: int) -> list[TokenMask | int | OrcdError]:
    """What each of ``sequences``, which have a constraint, may draw next: a mask of so many words, or one id.

    Or why it can draw nothing.
    """
    found: list[TokenMask | int | OrcdError] = [0] * len(sequences)
    of_bound = [
        (index, (constraint, sequence.most_tokens - len(sequence.token_ids)))
        for index, sequence in enumerate(sequences)
        if (constraint := sequence.constraint) is not None
    ]
    assert len(of_bound) == len(sequences), "a mask for a sequence that draws from all ids"
    for batch, asked in by_batch(of_bound).items():
        each_asked = [each for _, each in asked]
        masks = [_mask_alone(*each, num_words) for each in each_asked] if batch is None else batch.masks(each_asked)
        for (index, _), mask in zip(asked, masks, strict=True):
            found[index] = constraint_error(mask) if isinstance(mask, Exception) else mask
    for index in [index for index, sequence in enumerate(sequences) if sequence.sampling.min_tokens]:
        found[index] = (
            without(found[index], sequences[index].banned_ids) if sequences[index].banned_ids else found[index]
        )
    return found


def by_batch(asked: list[tuple[int, Each]]) -> dict[ConstraintBatch | None, list[tuple[int, Each]]]:
    """What constraints are asked for, each with a number, by what asks them together; mostly that is one for all."""
    batches = [each[0].batch for _, each in asked]
    if len(found := set(batches)) < 2:
        return dict.fromkeys(found, asked)
    return {each: [one for one, batch in zip(asked, batches, strict=True) if batch == each] for each in found}


def _mask_alone(constraint: TokenConstraint, num_left: int, num_words: int) -> TokenMask | Exception:
    """The mask of one, asked alone."""
    words = np.zeros(num_words, np.uint32)
    try:
        constraint.write_mask(words.data, num_left)
    except Exception as error:
        return error
    return TokenMask(words.tobytes()) if words.any() else nothing_left()


def without(mask: TokenMask | int | OrcdError, token_ids: Collection[int]) -> TokenMask | int | OrcdError:
    """What is left of ``mask``, or of an id that is the only one, without some ids."""
    if isinstance(mask, OrcdError):
        return mask
    if isinstance(mask, int):
        return nothing_left() if mask in token_ids else mask
    return mask.without(token_ids) or nothing_left()


def nothing_left() -> OrcdError:
    """What is wrong where no token may come next."""
    return OrcdError("the grammar of this request allows no token that could come next")
