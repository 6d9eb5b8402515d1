"""Which message, and which of its fields, a chat template fails at: found by rendering parts of the messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Messages = Sequence[Mapping[str, Any]]


def locate(fails: Callable[[Messages], bool], messages: Messages) -> str | None:
    """``messages[2].content`` or ``messages[2]``; None if the template fails whatever the messages are.

    ``fails`` says whether the template fails at these messages; it is asked a few times, whatever their number.
    """
    least, most = 0, len(messages)  # the template fails at the first ``most`` messages, and not at ``least``
    while most - least > 1:
        middle = (least + most) // 2
        if fails(messages[:middle]):
            most = middle
        else:
            least = middle
    if not most:
        return None
    earlier, at_fault = messages[:least], messages[least]
    plain = {"role": at_fault.get("role", "user"), "content": "x"}
    if fails([*earlier, plain]):
        return None if not earlier else f"messages[{least}]"
    for name in at_fault:
        others = {other: value for other, value in at_fault.items() if other != name}
        if name != "role" and re.fullmatch(r"\w{1,40}", name) and not fails([*earlier, {**plain, **others}]):
            return f"messages[{least}].{name}"
    return f"messages[{least}]"
