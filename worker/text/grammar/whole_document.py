"""Whether an answer is a whole document of the form that was asked for."""

from __future__ import annotations

import json

from orcd.structured_output import Kind


def is_whole(kind: Kind, text: str, *, ended: bool) -> bool:
    """Whether the text of an answer, which fits its grammar as far as it goes, is all of a document.

    ``ended`` says that it ended because nothing had to follow, and not at a limit or a stop string.
    """
    if kind not in ("json_schema", "json_object"):
        return ended
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
