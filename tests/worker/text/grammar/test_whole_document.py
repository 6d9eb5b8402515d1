from __future__ import annotations

import pytest

from orcd.structured_output import Kind
from worker.text.grammar.whole_document import is_whole


@pytest.mark.parametrize(
    ("kind", "text", "ended", "expected"),
    [
        ("json_schema", '{"a": 1}', False, True),
        ("json_object", '{"a": ', True, False),
        ("json_object", "[" * 100_000, False, False),
        ("regex", "aa", True, True),
        ("choice", "aa", False, False),
    ],
)
def test_json_is_whole_if_it_parses_and_all_else_if_it_ended(
    kind: Kind, text: str, ended: bool, expected: bool
) -> None:
    assert is_whole(kind, text, ended=ended) is expected
