"""Characters of texts that may end within one."""

from __future__ import annotations

from codecs import utf_8_decode


def count_characters(text: bytes) -> tuple[int, bytes] | None:
    """Those of ``text`` in a string, and the beginning of one more; None where it may hold an end or an escape."""
    if b'"' in text or b"\\" in text:
        return None
    try:
        decoded, num_bytes = utf_8_decode(text, "strict", False)
    except ValueError:
        return None
    return len(decoded), text[num_bytes:]
