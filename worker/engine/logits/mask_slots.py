"""Which masks of token ids lie where in a table: one that many rows have is sent to it once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from collections.abc import Sequence as Series
from typing import cast

import numpy as np
from numpy.typing import NDArray

from kernels.batch import ANY_ID, encode_only_id
from orcd.errors import OrcdError
from worker.engine.token_constraint import TokenMask

SPARE_SLOTS = 512
"""Of masks that a step does not have, but the next ones may: schemas have some hundred."""
NO_ID = (1 << 31) - 2


def num_mask_slots(max_rows: int) -> int:
    """Slots of the table for steps with a mask for each of ``max_rows``."""
    return 2 * max_rows + SPARE_SLOTS


class MaskSlots:
    """The slots of a table of masks, which are filled in turn: so those of one step lie side by side."""

    def __init__(self, num_slots: int, max_rows: int) -> None:
        """``max_rows``: most masks that are needed together; there are twice as many slots at least."""
        assert num_slots >= 2 * max_rows
        self._max_rows = max_rows
        self._masks: list[TokenMask | None] = [None] * num_slots
        self._end = 0  # of what was filled last
        self.numbers: dict[TokenMask, int] = {}
        """The slots of the masks that are in the table."""

    def clear(self) -> None:
        """Nothing is in the table."""
        self._masks = [None] * len(self._masks)
        self.numbers.clear()

    def place(self, masks: Iterable[TokenMask]) -> tuple[int, list[TokenMask]]:
        """Give each of the ``masks`` a slot; those that are to be sent, and the first of the slots that they fill."""
        numbers, wanted = self.numbers, dict.fromkeys(masks)
        missing = [mask for mask in wanted if mask not in numbers]
        if len(self._masks) - self._end < self._max_rows:
            self._end = 0
        start = self._end
        for mask in missing:  # which grows by those that lose their slots to others
            old = self._masks[self._end]
            if old is not None:
                del numbers[old]
                if old in wanted:
                    missing.append(old)
            self._masks[self._end] = mask
            numbers[mask] = self._end
            self._end += 1
        return start, missing


def number_rows(
    rows: Series[int], found: Series[TokenMask | int | OrcdError], slots: Mapping[TokenMask, int], num_rows: int
) -> tuple[NDArray[np.int32], dict[int, OrcdError]]:
    """What `kernels.reference.sampling.mask_logits` is told of ``num_rows``, and the errors of rows.

    ``found``: of ``rows`` a mask, the only id that may be drawn, or why there is none.
    """
    numbers, errors = np.full(num_rows, ANY_ID, np.int32), {}
    known = cast("Mapping[object, int]", slots)
    of_found = [known.get(mask, -1) for mask in found]
    for index in [index for index, number in enumerate(of_found) if number < 0]:
        said = found[index]
        assert not isinstance(said, TokenMask), "a mask that is not in the table"
        of_found[index] = encode_only_id(said if isinstance(said, int) else NO_ID)
        if isinstance(said, OrcdError):
            errors[rows[index]] = said
    numbers[rows] = of_found
    return numbers, errors
