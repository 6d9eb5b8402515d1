"""How devices are called: ``cpu``, and ``cuda:N``."""

from __future__ import annotations

import re

_GPU = re.compile(r"cuda:(\d{1,4})", re.ASCII)


def gpu_index(name: str) -> int | None:
    """N of the device ``cuda:N``; None for any other name."""
    found = _GPU.fullmatch(name)
    return int(found[1]) if found else None
