"""What may follow behind white space, told by what may follow behind less of it.

Between two parts of a document there may be `MOST_SPACE` characters of it, whatever the parts are. So of the tokens
that may come behind some of it those may come behind more that begin with no more than is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from worker.engine.token_constraint import TokenMask
from worker.text.grammar.alphabet import Alphabet
from worker.text.grammar.grammar_text import MOST_SPACE


class FittingMasks:
    """What is left of masks where tokens may begin with only so much white space: many places have the same ones."""

    def __init__(self, alphabet: Alphabet, share: Callable[[bytes], TokenMask]) -> None:
        """``share`` makes a mask of its words, or gives the one that there is of them."""
        self._alphabet = alphabet
        self._share = share
        self._known: dict[tuple[TokenMask, int], TokenMask] = {}

    def forget(self) -> None:
        """Know none."""
        self._known.clear()

    def of(self, mask: TokenMask, num_spaces: int) -> TokenMask:
        """That of ``mask`` for so many characters."""
        known = self._known.get((mask, num_spaces))
        if known is None:
            bits = np.frombuffer(mask.words, np.uint8).copy()
            fitting = self._alphabet.beginning_with(num_spaces)[: bits.size]
            bits[: fitting.size] &= fitting
            known = self._known[mask, num_spaces] = self._share(bits.tobytes())
        return known


@dataclass(slots=True, eq=False)
class SpaceMasks:
    """The masks between two parts of a document, by how much white space has been written there."""

    fitting: FittingMasks
    masks: dict[int, TokenMask] = field(default_factory=dict)

    def known(self, length: int) -> TokenMask | None:
        """The mask behind so many characters of white space, if that is known, or one behind fewer is."""
        known = self.masks.get(length)
        if known is None and self.masks and (least := min(self.masks)) < length:
            known = self.masks[length] = self.fitting.of(self.masks[least], MOST_SPACE - length)
        return known

    def learn(self, length: int, mask: TokenMask) -> None:
        """The ``mask`` behind so many characters of white space was computed."""
        self.masks[length] = mask
