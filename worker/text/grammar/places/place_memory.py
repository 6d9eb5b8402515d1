"""How much is kept of the places of all grammars."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Protocol

MAX_BYTES = 64 << 20
"""Of what is known of places, of all grammars together; a mask takes 19 kB for 152,000 tokens."""


class Places(Protocol):
    """Those of a grammar."""

    def forget(self) -> None:
        """Know nothing of them any more."""


class PlaceMemory:
    """Counts what is kept of places; the grammars that learned nothing for longest forget what they know."""

    def __init__(self) -> None:
        self._sizes: OrderedDict[Places, int] = OrderedDict()
        self._noted: deque[tuple[Places, int]] = deque()
        self._num_bytes = 0

    def note(self, places: Places, num_bytes: int) -> None:
        """As `add`, on any thread: they count when anything is learned next, of ``places`` or of others."""
        self._noted.append((places, num_bytes))

    def add(self, places: Places, num_bytes: int) -> None:
        """So many bytes more are kept of ``places``. On the one thread that asks all of them."""
        while self._noted:
            self._add(*self._noted.popleft())
        self._add(places, num_bytes)

    def _add(self, places: Places, num_bytes: int) -> None:
        self._num_bytes += num_bytes
        self._sizes[places] = self._sizes.get(places, 0) + num_bytes
        self._sizes.move_to_end(places)
        while self._num_bytes > MAX_BYTES:
            oldest, size = self._sizes.popitem(last=False)
            self._num_bytes -= size
            oldest.forget()
