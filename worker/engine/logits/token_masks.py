"""Masks of the token ids that constraints allow: asked for while the device computes the logits."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Series
from typing import TypeVar, cast

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
    asked = [
        (constraint, sequence.most_tokens - len(sequence.token_ids))
        for sequence in sequences
        if (constraint := sequence.constraint) is not None
    ]
    assert len(asked) == len(sequences), "a mask for a sequence that draws from all ids"
    found: list[TokenMask | int | Exception] = [0] * len(asked)
    for batch, indices in by_batch(asked).items():
        of_batch = [asked[index] for index in indices]
        masks: list[TokenMask | int | Exception]
        masks = [_mask_alone(*each, num_words) for each in of_batch] if batch is None else batch.masks(of_batch)
        if len(masks) == len(asked):
            found = masks
            break
        for index, mask in zip(indices, masks, strict=True):
            found[index] = mask
    for index in [index for index, mask in enumerate(found) if isinstance(mask, Exception)]:
        found[index] = constraint_error(cast(Exception, found[index]))
    known = cast("list[TokenMask | int | OrcdError]", found)
    for index in [index for index, sequence in enumerate(sequences) if sequence.sampling.min_tokens]:
        banned_ids = sequences[index].banned_ids
        known[index] = without(known[index], banned_ids) if banned_ids else known[index]
    return known


def by_batch(asked: Series[Each]) -> dict[ConstraintBatch | None, Series[int]]:
    """Which of what constraints are ``asked`` for is asked together, and by what; mostly that is one for all."""
    batches = [each[0].batch for each in asked]
    if len(found := set(batches)) < 2:
        return dict.fromkeys(found, range(len(asked)))
    return {each: [index for index, batch in enumerate(batches) if batch == each] for each in found}


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
