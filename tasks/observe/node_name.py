"""What a worker is called in Celery's tools: the same after a restart, and unlike that of any other on this machine."""

from __future__ import annotations

import fcntl
import os
import re
import tempfile
from pathlib import Path
from socket import gethostname

MOST = 1000
"""Workers of one model on one device of one machine."""


class NodeName:
    """``MODEL-DEVICE@HOST``; a second worker of that model and device on this machine is ``MODEL-DEVICE-2@HOST``.

    Each name is held by a lock on a file in the folder for temporary ones, which ends with the process.
    """

    def __init__(self, model: str, device: str, folder: Path | None = None) -> None:
        self._folder = folder or Path(tempfile.gettempdir())
        stem = re.sub(r"[^\w.-]+", "-", f"{model}-{device.replace(':', '')}", flags=re.ASCII).strip("-")
        self._file = -1
        for number in range(1, MOST):
            name = stem if number == 1 else f"{stem}-{number}"
            if self._lock(name):
                break
        self.text = f"{name}@{gethostname()}"

    def _lock(self, name: str) -> bool:
        path = self._folder / f"orcd-{os.getuid()}-{name}.lock"
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            file = os.open(path, flags, 0o600)
        except OSError:  # nobody may write there: then the name is not held, but as stable
            return True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(file)
            return False
        self._file = file
        return True
