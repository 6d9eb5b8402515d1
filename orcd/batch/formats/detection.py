"""Which format a prompt file has, from its name and its first lines."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import PurePath

import msgspec

from orcd.batch.formats.line_format import FormatName

_BY_SUFFIX: dict[str, FormatName] = {".txt": "text", ".csv": "csv", ".tsv": "csv"}
_JSON_SUFFIXES = (".jsonl", ".json", ".ndjson")
NUM_LINES = 100
"""Lines that are looked at: the first ones may be broken."""


def detect(name: str, lines: Iterable[tuple[int, bytes]], *, has_template: bool) -> FormatName:
    """The format of a file called ``name``.

    A suffix that says it is believed. Otherwise the first line that is a JSON object tells orcd's lines from OpenAI's;
    where none is, the file is CSV if there is a template for rows (``has_template``), and else text.
    """
    suffixes = [suffix.lower() for suffix in PurePath(name).suffixes]
    if suffixes[-1:] == [".gz"]:
        suffixes.pop()
    suffix = suffixes[-1] if suffixes else ""
    if suffix in _BY_SUFFIX:
        return _BY_SUFFIX[suffix]
    for _, line in islice(lines, NUM_LINES):
        try:
            members = _objects.decode(line)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        return "openai" if {"body", "url", "method"} & members.keys() else "orcd"
    if suffix in _JSON_SUFFIXES:
        return "orcd"
    return "csv" if has_template else "text"


_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])
