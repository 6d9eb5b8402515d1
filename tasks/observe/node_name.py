"""What a worker is called in Celery's tools: the same after a restart, and unlike that of any other on this machine."""

from __future__ import annotations

import errno
import hashlib
import re
import socket

MOST = 1000
"""Workers of one model on one device of one machine."""


class NodeName:
    """``MODEL-DEVICE@HOST``; a second worker of that model and device on this machine is ``MODEL-DEVICE-2@HOST``.

    Each name is held by a socket in Linux's abstract namespace, which ends with the process: that needs no file, and is
    seen by other users, and by containers that share the host's network.
    """

    def __init__(self, model: str, device: str) -> None:
        stem = re.sub(r"[^\w.-]+", "-", f"{model}-{device.replace(':', '')}", flags=re.ASCII).strip("-")
        for number in range(1, MOST):
            name = stem if number == 1 else f"{stem}-{number}"
            if self._hold(name):
                break
        self.text = f"{name}@{socket.gethostname()}"

    @staticmethod
    def _hold(name: str) -> bool:
        """Whether nobody else on this machine has the name, as far as can be told."""
        try:
            held = socket.socket(socket.AF_UNIX)
        except OSError:
            return True
        try:
            held.bind(f"\0orcd/{hashlib.sha256(name.encode()).hexdigest()}")  # a socket's name may have 107 bytes
        except OSError as error:  # where the system has no such sockets the name is not held, but as stable
            held.close()
            return error.errno != errno.EADDRINUSE
        held.detach()  # open until this process ends
        return True
