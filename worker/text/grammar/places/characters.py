"""Characters of texts that may end within one."""

from __future__ import annotations

from codecs import utf_8_decode

_LIMITED = frozenset([b"\xe0", b"\xed", b"\xf0", b"\xf4"])
"""Not each byte that goes on with a character may follow."""
_WITHOUT = (b"", b"\xc2", b"\xe1", b"\xf1")
"""Of characters that lack so many bytes, which may be any, the first one."""


def count_characters(text: bytes) -> tuple[int, bytes] | None:
    """Those of ``text`` in a string, and the beginning of one more; None where it may hold an end or an escape.

    The beginning is the shortest one behind which the same may follow.
    """
    if b'"' in text or b"\\" in text:
        return None
    try:
        decoded, num_bytes = utf_8_decode(text, "strict", False)
    except ValueError:
        return None
    half = text[num_bytes:]
    if not half or half in _LIMITED:
        return len(decoded), half
    if half[:1] == b"\xed" and half[1:] > b"\x9f":  # the beginning of a surrogate, of which Python awaits the rest
        return None
    num_bytes = 2 + (half[0] >= 0xE0) + (half[0] >= 0xF0)
    return len(decoded), _WITHOUT[num_bytes - len(half)]
