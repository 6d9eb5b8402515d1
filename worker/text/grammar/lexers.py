"""Where the answers of one grammar begin, so that the masks of many are computed at the same time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from weakref import WeakSet

from llguidance import LLMatcher

ANSWERS_PER_LEXER = 8
"""With fewer each, another thread costs more than it saves, and a lexer learns anew what others know."""


class Lexer:
    """What copies of one matcher share, behind a lock: what its regular expressions have been seen to match.

    Whoever computes a mask holds that lock until it is done.
    """

    def __init__(self, beginning: LLMatcher) -> None:
        """``beginning`` has taken no token."""
        self.beginning = beginning
        self.answers: WeakSet[object] = WeakSet()


class KeptState(NamedTuple):
    """What has taken some tokens, of which copies go on."""

    lexer: Lexer
    state: LLMatcher
    num_taken: int


class Lexers:
    """Lexers of one grammar, each with a lock of its own."""

    def __init__(self, beginnings: Sequence[LLMatcher]) -> None:
        self._lexers = [Lexer(beginning) for beginning in beginnings]

    def choose(self) -> Lexer:
        """The one for the next answer: the first that has few, so that they know much, or the one with the fewest."""
        for lexer in self._lexers:
            if len(lexer.answers) < ANSWERS_PER_LEXER:
                return lexer
        return min(self._lexers, key=lambda lexer: len(lexer.answers))
