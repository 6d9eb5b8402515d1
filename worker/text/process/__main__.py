"""``python -P -m worker.text.process --fd N``: the child of a `TextProcess`, on an inherited socket."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Sequence

from worker.text.process.text_service import TextService

USAGE = "orcd: a worker starts this process by itself: python -m worker.text.process --fd N"


def main(argv: Sequence[str]) -> int:
    """Answer calls until the parent has gone; returns the exit code."""
    if len(argv) != 2 or argv[0] != "--fd" or not argv[1].isdecimal():
        print(USAGE, file=sys.stderr)
        return 2
    for number in (signal.SIGINT, signal.SIGTERM):  # a terminal, or a container, sends them to its parent as well
        signal.signal(number, signal.SIG_IGN)
    with socket.socket(fileno=int(argv[1])) as connection:
        TextService(connection).run()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
