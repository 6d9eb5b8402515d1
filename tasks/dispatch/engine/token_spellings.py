"""How a vocabulary's tokens are written in JSON."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from tasks.dispatch.engine.logprob_process import LogprobProcess

T = TypeVar("T")


class TokenTable(Generic[T]):
    """Something for each token id, made when it is first asked for. Safe to use from several threads."""

    def __init__(self, num_tokens: int, make: Callable[[int], T]) -> None:
        """``make`` is asked for -1, too, which is no token; what it makes should be true, or is made each time."""
        self._num_tokens = num_tokens
        self._make = make
        self._made: list[T | None] = [None]  # the last one is -1's, and stays None

    def of(self, token_ids: Sequence[int]) -> list[T]:
        """That of each of the ids. Called for every few tokens, so that it costs little where all are made."""
        made = self._made
        try:
            found = list(map(made.__getitem__, token_ids))
        except IndexError:  # it is the first time, or a padded model has more ids than its vocabulary
            size = max(self._num_tokens, max(token_ids) + 1)
            self._made = [*made[:-1], *[None] * (size + 1 - len(made)), None]
            return self.of(token_ids)
        if not all(found):
            for place, token_id in enumerate(token_ids):
                if not found[place]:
                    found[place] = self._make(token_id)
                    if token_id >= 0:
                        made[token_id] = found[place]
        return found  # type: ignore[return-value]  # nothing is None any more


class TokenSpellings:
    """Of each token id what `orcd.events.PackedLogprobs` and the JSON of an `orcd.events.TokenLogprob` need.

    An id without a token (-1, or one of a padded model) has no bytes.
    """

    def __init__(self, pieces: Sequence[bytes], process: LogprobProcess | None = None) -> None:
        """``pieces`` are the bytes of each token by its id, which ``process`` knows too."""
        self._pieces = pieces
        self.process = process
        self.texts = self._table(self._text)
        self.pieces = self._table(lambda token_id: b',"%d":"%b"' % (token_id, b64encode(*self.bytes_of([token_id]))))
        """The bytes of the token, behind those of another one."""

    def _table(self, make: Callable[[int], T]) -> TokenTable[T]:
        return TokenTable(len(self._pieces), make)

    def bytes_of(self, token_ids: Sequence[int]) -> list[bytes]:
        """Those of each of the ids."""
        pieces, size = self._pieces, len(self._pieces)
        return [pieces[token_id] if 0 <= token_id < size else b"" for token_id in token_ids]

    def _text(self, token_id: int) -> str | list[int]:
        [spelling] = self.bytes_of([token_id])
        try:
            return spelling.decode()
        except UnicodeDecodeError:
            return list(spelling)
