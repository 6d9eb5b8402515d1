from __future__ import annotations

import json
import sys

import pytest

from orcd import jsonl


def test_no_character_inside_ends_the_line_for_any_reader() -> None:
    text = "".join(map(chr, (*range(0xD800), *range(0xE000, sys.maxunicode + 1))))
    line = jsonl.encode({"text": text})
    assert line.decode().splitlines() == [line.decode().removesuffix("\n")]
    assert json.loads(line) == {"text": text}


def test_a_lone_surrogate_cannot_be_written() -> None:
    with pytest.raises(UnicodeEncodeError):
        jsonl.encode({"text": "\ud800"})
