"""Which requests the engine is at work on, where it can be read after the engine has died."""

from __future__ import annotations

import os
from collections.abc import Collection

from worker.contract import encode_in_flight


class InFlightFile:
    """The requests that are being added and those of the steps in flight, in a file that the Celery process opened.

    What a process has written to a file outlives it, however it dies. It is written only when the set changes, which is
    when sequences come or go.
    """

    def __init__(self, fd: int) -> None:
        """``fd`` is open for writing; nobody else writes to it."""
        self._fd = fd
        self.request_ids: frozenset[str] = frozenset()
        """What the file says."""

    def add(self, request_ids: Collection[str]) -> None:
        """These are about to be added; the next `write` says whether they are still being worked on."""
        self.write(self.request_ids.union(request_ids))

    def write(self, request_ids: frozenset[str]) -> None:
        """The engine is about to work on these, and on no others."""
        if request_ids != self.request_ids:
            self.request_ids = request_ids
            os.pwrite(self._fd, encode_in_flight(request_ids), 0)
