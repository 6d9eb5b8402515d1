"""One run of the engine process: spawned with exec, with one end of a socketpair and a file for what is in flight."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from typing import IO

from orcd.settings import inherited_environment, to_environment
from worker.settings import Settings


@dataclass(frozen=True, slots=True)
class EngineRun:
    """A process that loads a model and then serves whoever is at ``connection``.

    It notes in ``in_flight`` which requests it is at work on (`worker.engine.runners.in_flight_file`).
    """

    process: subprocess.Popen[bytes]
    connection: socket.socket
    in_flight: IO[bytes]


def start_engine(settings: Settings) -> EngineRun:
    """Start ``python -m worker``. On Linux it dies with the thread that calls this. Raises OSError."""
    ours, theirs = socket.socketpair()
    in_flight = memory_file("orcd-in-flight")
    send_timeout = struct.pack("ll", settings.engine_step_timeout_s, 0)  # a timeval: seconds, microseconds
    try:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, send_timeout)
        fds = [str(in_flight.fileno()), str(theirs.fileno())]
        process = subprocess.Popen(
            # -P: a worker.py in the folder that we were started in must not pass for ours.
            [sys.executable, "-P", "-m", "worker", "--in-flight-fd", fds[0], "--fd", fds[1]],
            env=inherited_environment() | to_environment(settings),
            pass_fds=[in_flight.fileno(), theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a signal to our process group is for us to judge
        )
    except BaseException:
        ours.close()
        in_flight.close()
        raise
    finally:
        theirs.close()
    return EngineRun(process, ours, in_flight)


def memory_file(name: str) -> IO[bytes]:
    """An empty file to hand to a child. Raises OSError."""
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create(name), "r+b")
    return tempfile.TemporaryFile()
