from __future__ import annotations

import pytest

from orcd.batch.formats.detection import NUM_LINES, detect

OPENAI = b'{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "a"}}\n'
ORCD = b'{"id": "a", "prompt": "a"}\n'
TEXT = b"Write a haiku\n"


@pytest.mark.parametrize(
    ("name", "lines", "expected"),
    [
        ("a.txt", [ORCD], "text"),
        ("a.TXT.gz", [ORCD], "text"),
        ("a.csv", [TEXT], "csv"),
        ("a.tsv.gz", [TEXT], "csv"),
        ("a.jsonl", [OPENAI], "openai"),
        ("a.jsonl.gz", [ORCD], "orcd"),
        ("a.jsonl", [b"broken\n", b"[1]\n", OPENAI], "openai"),
        ("a.jsonl", [b"broken\n"], "orcd"),
        ("a.json", [], "orcd"),
        ("-", [ORCD], "orcd"),
        ("-", [b"\n", OPENAI], "openai"),
        ("-", [TEXT], "text"),
        ("prompts", [TEXT, b"\xff\n", b"[" * 100_000], "text"),
        ("-", [], "text"),
        ("-", [TEXT] * NUM_LINES + [ORCD], "text"),
    ],
)
def test_the_format_follows_from_name_and_lines(name: str, lines: list[bytes], expected: str) -> None:
    assert detect(name, enumerate(lines, 1), has_template=False) == expected


def test_a_template_makes_a_table_of_what_would_be_text() -> None:
    assert detect("-", [(1, TEXT)], has_template=True) == "csv"
    assert detect("-", [(1, ORCD)], has_template=True) == "orcd"
