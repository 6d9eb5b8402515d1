"""Calls of tools that a model has written: piece by piece in events, and whole in results."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Iterable

import msgspec

_ID_CHARACTERS = string.digits + string.ascii_letters
_ID_LENGTH = 9  # Mistral's chat templates refuse ids of another length


class ToolCall(msgspec.Struct, frozen=True):
    """One call. ``arguments`` are JSON as the model wrote it, which may be invalid, or cut short with the answer."""

    id: str
    name: str
    arguments: str


class ToolCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """What comes next of the call ``index`` (from 0) of a choice: text of its arguments.

    ``id`` and ``name`` are in a call's first delta, and only there.
    """

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


def tool_call_id(job_id: str, choice: int, index: int) -> str:
    """The id of a call: always the same for the same one, so that whoever resumes a job goes on with it."""
    digest = hashlib.sha256(f"orcd:tool_call:{job_id}:{choice}:{index}".encode()).digest()
    return "".join(_ID_CHARACTERS[byte % len(_ID_CHARACTERS)] for byte in digest[:_ID_LENGTH])


def length(deltas: Iterable[ToolCallDelta]) -> int:
    """A measure of deltas that does not depend on how they are cut: their characters, and one for each beginning."""
    return sum(len(delta.arguments) + bool(delta.id) for delta in deltas)


def behind(deltas: Iterable[ToolCallDelta], seen: int) -> list[ToolCallDelta]:
    """The deltas less their beginning of this `length`."""
    rest = []
    for delta in deltas:
        whole = length([delta])
        if seen and seen < whole:
            num_seen = seen - bool(delta.id)
            delta = ToolCallDelta(delta.index, arguments=delta.arguments[num_seen:])
        if seen < whole:
            rest.append(delta)
        seen = max(0, seen - whole)
    return rest


def joined(deltas: Iterable[ToolCallDelta]) -> list[ToolCall]:
    """The calls that all deltas of a choice add up to, by index."""
    names: dict[int, tuple[str, str]] = {}
    arguments: dict[int, list[str]] = {}
    for delta in deltas:
        names.setdefault(delta.index, (delta.id, delta.name))
        arguments.setdefault(delta.index, []).append(delta.arguments)
    return [ToolCall(*names[index], "".join(arguments[index])) for index in sorted(names)]
