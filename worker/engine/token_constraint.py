"""What a grammar or bad words say of one answer, token by token: the interface that the engine knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class TokenConstraint(Protocol):
    """Which tokens one choice may draw. What it says depends on the ids that it took and on how many may still follow.

    Whatever it raises is an error of its request.
    """

    def copy(self) -> TokenConstraint:
        """Another one that has taken the same ids; from now on they are independent."""

    @property
    def batch(self) -> ConstraintBatch | None:
        """What asks it together with others; None: it is asked alone."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow: the choice ends, with finish reason "stop"."""

    def write_mask(self, mask: memoryview, num_left: int) -> None:
        """Say which ids may come next, of ``num_left`` tokens that may still be drawn, the next one included.

        ``mask`` holds uint32 words, all 0: bit i of word w is to be 1 if id 32 * w + i may be drawn.
        """

    def forced_id(self, num_left: int) -> int | None:
        """The only id that `write_mask` would allow; None where there are several, or where only the mask tells.

        It takes far less time than a mask, and is no error where that would be one.
        """

    def take(self, token_id: int, num_left: int) -> int:
        """Take the token that was drawn, of ``num_left`` that might be; returns the id that is appended.

        That is another one where the drawn one would leave too few tokens to close the document.
        """

    def restore(self, token_ids: Sequence[int], num_left: int) -> None:
        """Take the ids that an earlier owner of the choice has appended, the first one of ``num_left``."""


class MaskRow(NamedTuple):
    """A row of masks, and whose it is."""

    constraint: TokenConstraint
    num_left: int
    row: int


class Drawn(NamedTuple):
    """A token that was drawn, of ``num_left`` that might be."""

    constraint: TokenConstraint
    token_id: int
    num_left: int


class ConstraintBatch(Protocol):
    """Asks many constraints at once, on several threads; what they say is what each would say alone.

    All of them have this as their `TokenConstraint.batch`. What one of them raises is given back as its own error.
    """

    def write_masks(self, rows: Sequence[MaskRow], masks: memoryview) -> dict[int, Exception]:
        """Write ``rows`` of ``masks`` [K, W], uint32, whatever is there, and no others; the errors of rows.

        A row with an error holds anything.
        """

    def take(self, drawn: Sequence[Drawn]) -> list[int | Exception]:
        """Take tokens of as many constraints; for each the id that is appended, or what went wrong."""


def take_alone(drawn: Drawn) -> int | Exception:
    """As `ConstraintBatch.take`, of one."""
    constraint, token_id, num_left = drawn
    try:
        return constraint.take(token_id, num_left)
    except Exception as error:
        return error
