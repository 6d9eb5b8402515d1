"""``python -m worker``: the engine process, and the commands about a model file.

``--fd N`` serves the Celery process on an inherited socket, set up by ``ORCD_*`` variables; ``--in-flight-fd M`` before
it names an inherited file for `worker.engine.runners.in_flight_file`. Anything else is a command line of
`worker.commands.main`. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import gc
import io
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache

from kernels.devices.device_name import gpu_index
from kernels.devices.early_context import begin_context
from orcd.errors import OrcdError
from worker.engine.runners.in_flight_file import InFlightFile
from worker.settings import from_environment

USAGE = "`orcd worker` starts the engine process; by hand: python -m worker {inspect|tokenize|render|logits|bench} ..."

SWITCH_INTERVAL_S = 0.0005
"""How long the engine's thread waits at most for the interpreter while another thread compiles a grammar. It does so
each time it has waited for something else: with Python's 5 ms a step of 12 ms took 120 on the CPU device, with these
0.5 ms 40."""


def main(argv: Sequence[str]) -> int:
    """Serve or run a command; returns the exit code."""
    match argv:
        case ["--fd", fd] if fd.isdecimal():
            return _serve(int(fd))
        case ["--in-flight-fd", file_fd, "--fd", fd] if file_fd.isdecimal() and fd.isdecimal():
            return _serve(int(fd), int(file_fd))
    if not argv:
        print(f"orcd: {USAGE}", file=sys.stderr)
        return 2
    _limit_matrix_threads("cpu")
    if isinstance(sys.stdout, io.TextIOWrapper):  # a character that the output has not is a question mark
        sys.stdout.reconfigure(errors="replace")
    from worker.commands.main import run  # not at the top: the engine process has no use for it

    return run(argv)


def _limit_matrix_threads(device: str) -> None:
    """Say how many threads the matrix library may have, unless the user has said it.

    The CPU device leaves a core free: the threads spin while they wait for each other, and with as many of them as
    cores one busy process beside the engine made a step of 2 ms take 100 ms. An engine on a GPU multiplies no matrices,
    and all threads begin, and spin, when NumPy is imported: on 64 cores for 8 s of processor time. NumPy reads the
    variable then, so this comes first.
    """
    num_threads = 1 if gpu_index(device) is not None else max(1, (os.cpu_count() or 2) - 1)
    os.environ.setdefault("OPENBLAS_NUM_THREADS", str(num_threads))


def _serve(fd: int, in_flight_fd: int | None = None) -> int:
    gc.disable()  # until the model is loaded: what is made until then stays
    read_settings = cache(from_environment)
    device = "cpu"
    with suppress(OrcdError):  # the service reports it
        device = read_settings().device
    begin_context(device)
    _limit_matrix_threads(device)
    from worker.service import serve  # not at the top: NumPy and the ops take a while to import

    try:
        connection = socket.socket(fileno=fd)
    except OSError:
        print(f"orcd: --fd {fd} is not an open socket. {USAGE}", file=sys.stderr)
        return 2
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    return serve(connection, read_settings, None if in_flight_fd is None else InFlightFile(in_flight_fd))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
