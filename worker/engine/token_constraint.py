"""What a grammar or bad words say of one answer, token by token: the interface that the engine knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class TokenConstraint(Protocol):
    """Which tokens one choice may draw. What it says depends on the ids that it took and on how many may still follow.

    Whatever it raises is an error of its request.
    """

    def copy(self) -> TokenConstraint:
        """Another one that has taken the same ids; from now on they are independent."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow: the choice ends, with finish reason "stop"."""

    def write_mask(self, mask: memoryview, num_left: int) -> None:
        """Say which ids may come next, of ``num_left`` tokens that may still be drawn, the next one included.

        ``mask`` holds uint32 words, all 0: bit i of word w is to be 1 if id 32 * w + i may be drawn. It is called on
        any thread, but on one at a time.
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
