"""What a worker's Celery process is called."""

from __future__ import annotations

import os
import secrets
import socket
from functools import cache


@cache
def worker_id() -> str:
    """Its name in leases, logs and heartbeats: unique also among processes with recycled ids."""
    return f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
