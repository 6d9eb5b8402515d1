"""A constraint with a budget, for engines of any vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orcd.errors import OrcdError
from worker.contract import Add
from worker.engine.token_constraint import Asked, Drawn, TokenMask, take_alone

CLOSE = 1


class BracketConstraint:
    """Even ids, of which multiples of 8 open a bracket; `CLOSE` closes one. Complete with all closed and ids enough.

    Only `take` sees that an opening one leaves too few tokens. It fails if a token is taken twice, or left out.
    """

    batch = None

    def __init__(self, num_ids: int) -> None:
        self.num_ids = num_ids
        self.token_ids: list[int] = []
        self.depth = 0
        self.num_left: int | None = None

    def copy(self) -> BracketConstraint:
        other = BracketConstraint(self.num_ids)
        for token_id in self.token_ids:
            other._append(token_id)
        return other

    @property
    def is_complete(self) -> bool:
        return self.depth == 0 and len(self.token_ids) >= self.num_ids

    def write_mask(self, mask: memoryview, num_left: int) -> None:
        assert not any(mask)
        assert num_left >= max(self.depth, 1)
        assert self.num_left in (None, num_left + 1)
        if self.depth < num_left:
            for word in range(len(mask)):
                mask[word] = 0x55555555
        if self.depth:
            mask[0] |= 1 << CLOSE

    def forced_id(self, num_left: int) -> int | None:
        assert self.num_left in (None, num_left + 1)
        return CLOSE if self.depth >= num_left else None

    def take(self, token_id: int, num_left: int) -> int:
        assert self.num_left in (None, num_left + 1), "a token was taken twice, or left out"
        self.num_left = num_left
        if opens(token_id) and self.depth + 1 > num_left - 1:
            token_id = CLOSE if self.depth else 2
        self._append(token_id)
        return token_id

    def restore(self, token_ids: Sequence[int], num_left: int) -> None:
        for token_id in token_ids:
            self._append(token_id)
        self.num_left = num_left - len(token_ids) + 1

    def _append(self, token_id: int) -> None:
        assert token_id % 2 == 0 or (token_id == CLOSE and self.depth)
        self.token_ids.append(token_id)
        self.depth += opens(token_id) - (token_id == CLOSE)


def constraint_of(add: Add) -> BracketConstraint | None:
    """Of a request whose name is a "c" and a number; those of odd ones can be complete before their last token."""
    return BracketConstraint(8 if int(add.request_id[1:]) % 2 else 100) if add.request_id.startswith("c") else None


def opens(token_id: int) -> bool:
    return token_id % 8 == 0


class RunConstraint(BracketConstraint):
    """Has 2, 4, 6, ... follow behind an opening bracket, ``length`` ids; `forced_id` tells so if ``is_told``."""

    def __init__(self, num_ids: int, length: int, *, is_told: bool) -> None:
        super().__init__(num_ids)
        self.length, self.is_told = length, is_told

    def copy(self) -> RunConstraint:
        other = RunConstraint(self.num_ids, self.length, is_told=self.is_told)
        for token_id in self.token_ids:
            other._append(token_id)
        return other

    @property
    def is_complete(self) -> bool:
        return super().is_complete and self._next_id() is None

    def write_mask(self, mask: memoryview, num_left: int) -> None:
        forced = super().forced_id(num_left) or self._next_id()
        super().write_mask(mask, num_left)
        if forced is not None:
            for word in range(len(mask)):
                mask[word] = 0
            mask[0] = 1 << forced

    def forced_id(self, num_left: int) -> int | None:
        return (super().forced_id(num_left) or self._next_id()) if self.is_told else None

    def _next_id(self) -> int | None:
        for behind, token_id in enumerate(reversed(self.token_ids[-self.length :])):
            if opens(token_id):
                return 2 * (behind % 3 + 1)
        return None


class FailingConstraint(BracketConstraint):
    """Raises at the ``fails_at``-th call of one of its methods, or allows nothing there."""

    def __init__(self, method: str, fails_at: int = 1, error: Exception | None = None) -> None:
        super().__init__(100)
        self.method, self.calls_left, self.error = method, fails_at, error

    def copy(self) -> FailingConstraint:
        self._count("copy")
        return FailingConstraint(self.method, self.calls_left, self.error)

    def write_mask(self, mask: memoryview, num_left: int) -> None:
        if not self._count("write_mask"):
            super().write_mask(mask, num_left)

    def forced_id(self, num_left: int) -> int | None:
        self._count("forced_id")
        return super().forced_id(num_left)

    def take(self, token_id: int, num_left: int) -> int:
        self._count("take")
        return super().take(token_id, num_left)

    def restore(self, token_ids: Sequence[int], num_left: int) -> None:
        self._count("restore")
        super().restore(token_ids, num_left)

    def _count(self, method: str) -> bool:
        self.calls_left -= method == self.method
        if method == self.method and not self.calls_left and self.error is not None:
            raise self.error
        return method == self.method and not self.calls_left


class SlowBatch:
    """Asks constraints one by one, and does not know of every ``period``-th token in a moment what it leads to.

    Then that is known when it was asked ``patience`` times, for whomever.
    """

    def __init__(self, period: int, patience: int = 1) -> None:
        self.period, self.patience = period, patience
        self.num_asked = self.num_unknown = 0

    def masks(self, asked: Sequence[Asked]) -> list[TokenMask | int | Exception]:
        masks: list[TokenMask | int | Exception] = []
        for constraint, num_left in asked:
            words = np.zeros(1, np.uint32)
            try:
                constraint.write_mask(words.data, num_left)
                masks.append(TokenMask(words.tobytes()) if words.any() else OrcdError("allows no token"))
            except Exception as error:
                masks.append(error)
        return masks

    def take(self, drawn: Sequence[Drawn]) -> list[int | Exception]:
        return [take_alone(each) for each in drawn]

    def take_known(self, drawn: Sequence[Drawn]) -> list[int | Exception | None]:
        taken: list[int | Exception | None] = []
        for each in drawn:
            self.num_asked += 1
            taken.append(take_alone(each) if self.num_asked % self.period else None)
        return taken

    def take_unknown(self, drawn: Drawn, *, waits: bool) -> int | Exception | None:
        self.num_unknown += 1
        return take_alone(drawn) if waits or self.num_unknown % self.patience == 0 else None


def slow(constraint: BracketConstraint, batch: SlowBatch) -> BracketConstraint:
    """A constraint like this one, and all its copies, that ``batch`` asks."""
    kind = type(constraint)

    class Slow(kind):  # type: ignore[misc, valid-type]
        def copy(self) -> BracketConstraint:
            return slow(super().copy(), batch)

    made = constraint.copy()
    made.__class__ = Slow
    made.batch = batch  # type: ignore[assignment]
    return made
