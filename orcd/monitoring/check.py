"""One thing that `orcd doctor` looks at."""

from __future__ import annotations

from typing import Literal

import msgspec


class Check(msgspec.Struct, frozen=True):
    """What was found. ``advice`` says what to do about a ``warning``, or a ``problem``, with which nothing works."""

    name: str
    outcome: Literal["good", "warning", "problem"]
    found: str
    advice: str = ""
