"""Which requests the engine is at work on, where it can be read after the engine has died."""

from __future__ import annotations

import os
from collections.abc import Collection

from worker.contract import encode_in_flight


class InFlightFile:
    """The requests that are being added or compiled and those of steps in flight, in a file of the Celery process.

    What a process has written to a file outlives it, however it dies. It is written only when the set changes, which is
    when sequences come or go.
    """

    def __init__(self, fd: int) -> None:
        """``fd`` is open for writing; nobody else writes to it."""
        self._fd = fd
        self._compiling: frozenset[str] = frozenset()
        self.request_ids: frozenset[str] = frozenset()
        """What the file says."""
        self.num_additions = 0
        """Grows when what the file says beside the steps in flight is about to be said, or not to be said any more."""

    def add(self, request_ids: Collection[str]) -> None:
        """These are about to be added; the next `write` says whether they are still being worked on."""
        self.num_additions += 1
        self.write(self.request_ids.union(request_ids))

    def set_compiling(self, request_ids: frozenset[str]) -> None:
        """The grammars of these, and of no others, are being compiled, whatever steps there are.

        Those that are not any more are said until the next `write`, as they may be about to be added.
        """
        if request_ids != self._compiling:
            self._compiling = request_ids
            self.add(request_ids)

    def write(self, request_ids: frozenset[str]) -> None:
        """The engine's steps are about these, and about no others."""
        request_ids |= self._compiling
        if request_ids != self.request_ids:
            self.request_ids = request_ids
            os.pwrite(self._fd, encode_in_flight(request_ids), 0)
