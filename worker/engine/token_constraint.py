"""What a grammar or bad words say of one answer, token by token: the interface that the engine knows."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import msgspec


class TokenMask(msgspec.Struct, frozen=True, eq=False):
    """Which ids may be drawn. One that many rows have is best the same object: a device is sent each object once."""

    words: bytes
    """Of uint32 words: bit i of word w is 1 if id 32 * w + i may be drawn."""

    def without(self, token_ids: Collection[int]) -> TokenMask | None:
        """Another one, that does not allow these; None if nothing is left."""
        words = bytearray(self.words)
        for token_id in token_ids:
            words[token_id >> 3] &= ~(1 << (token_id & 7))
        return TokenMask(bytes(words)) if any(words) else None


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


Asked = tuple[TokenConstraint, int]
"""A constraint that is asked for a mask, and of how many tokens that may still be drawn it is."""


Drawn = tuple[TokenConstraint, int, int]
"""A constraint, a token that was drawn for it, and of how many that might be."""


class ConstraintBatch(Protocol):
    """Asks many constraints at once, on several threads; what they say is what each would say alone.

    All of them have this as their `TokenConstraint.batch`. What one of them raises is given back as its own error.
    """

    def masks(self, asked: Sequence[Asked]) -> list[TokenMask | int | Exception]:
        """What `TokenConstraint.write_mask` says of each, or the only id that it allows, or what went wrong."""

    def take(self, drawn: Sequence[Drawn]) -> list[int | Exception]:
        """Take tokens of as many constraints; for each the id that is appended, or what went wrong."""

    def take_known(self, drawn: Sequence[Drawn]) -> list[int | Exception | None]:
        """As `take` where that takes a moment and the next mask is known; None where not, and nothing has changed."""

    def take_unknown(self, drawn: Drawn, *, waits: bool) -> int | Exception | None:
        """As `take`, of one for which `take_known` gave None; the mask behind the token is known then.

        None where that takes long: to be asked again, with the same, until it is known, unless this ``waits``.
        """


def take_alone(drawn: Drawn) -> int | Exception:
    """As `ConstraintBatch.take`, of one."""
    constraint, token_id, num_left = drawn
    try:
        return constraint.take(token_id, num_left)
    except Exception as error:
        return error
