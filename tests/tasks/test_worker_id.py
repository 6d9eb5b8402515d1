"""What a worker's Celery process is called."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

from tasks.worker_id import worker_id


def test_a_worker_keeps_its_name_and_no_other_process_has_it() -> None:
    program = "from tasks.worker_id import worker_id; print(worker_id())"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    assert worker_id() == worker_id() != other
    assert worker_id().startswith(f"{socket.gethostname()}-{os.getpid()}-")
