"""The end of a JSON object in text that comes in pieces."""

from __future__ import annotations

import re

_OUTSIDE = re.compile(r'["{}\[\]]')
_INSIDE = re.compile(r'["\\]')


class JsonValue:
    """Follows one object or array from its opening bracket on.

    It looks at strings and brackets only: whether the rest is valid JSON is for whoever reads it.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False

    def end(self, text: str) -> int | None:
        """Where in the next text the value ends, behind its closing bracket; None if it goes on behind the text."""
        position = 0
        while position < len(text):
            if self._escaped:
                self._escaped = False
                position += 1
                continue
            match = (_INSIDE if self._in_string else _OUTSIDE).search(text, position)
            if match is None:
                return None
            position = match.end()
            if self._in_string:
                self._in_string = match[0] != '"'
                self._escaped = match[0] == "\\"
            elif match[0] == '"':
                self._in_string = True
            else:
                self._depth += 1 if match[0] in "{[" else -1
                if not self._depth:
                    return position
        return None
