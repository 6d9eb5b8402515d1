"""Threads where the system allows only so many."""

from __future__ import annotations

import errno
import os
import threading


def start(thread: threading.Thread) -> None:
    """Start it; once only. Raises OSError where the system allows no more threads."""
    try:
        thread.start()
    except RuntimeError:
        if thread.ident is not None:
            raise
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None  # what Python has not kept
