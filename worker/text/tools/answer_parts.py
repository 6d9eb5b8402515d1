"""What an answer is made of: its text, its reasoning, and calls of tools."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby

import msgspec


class CallDelta(msgspec.Struct, frozen=True):
    """What comes next of the call ``index`` (from 0): its name, with which it begins, and text of its arguments."""

    index: int
    name: str = ""
    arguments: str = ""


class AnswerParts(msgspec.Struct):
    """Stretches of an answer. ``commentary`` is what GPT-OSS writes in that channel beside calls."""

    answer: str = ""
    analysis: str = ""
    commentary: str = ""
    calls: list[CallDelta] = []


def joined(deltas: Iterable[CallDelta]) -> tuple[CallDelta, ...]:
    """One delta a call."""
    calls = []
    for index, group in groupby(deltas, key=lambda delta: delta.index):
        parts = list(group)
        name, arguments = ("".join(getattr(part, field) for part in parts) for field in ("name", "arguments"))
        calls.append(CallDelta(index, name, arguments))
    return tuple(calls)
