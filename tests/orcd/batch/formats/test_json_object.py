from __future__ import annotations

import pytest

from orcd.batch.formats import json_object
from orcd.batch.formats.line_format import Record
from orcd.errors import InvalidRequest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b'{"custom_id": "a"}', "a"),
        (b'{"id": 7, "body": {"id": "no"}}', 7),
        (b'{"body": {"id": "no"}}', None),
        (b'{"id": true}', None),
        (b'{"id": 1.5}', None),
        (b'{"id": ["a"]}', None),
        (b'{"id": null}', None),
        (b'{"custom_id": "a \\"quoted\\" \\u00fc", broken', 'a "quoted" ü'),
        (b'{"custom_id":"cut off", "body": {"mess', "cut off"),
        (b'{"id": 12, broken', 12),
        (b'{"id": 1', None),
        (b'{"custom_id": "\\ud800"}', None),
        (b'{"custom_id": "\xff", broken', None),
        (b"no object", None),
        (b'"id"', None),
        (b"[" * 100_000, None),
    ],
)
def test_the_id_of_a_line_is_found_even_if_the_line_is_broken(text: bytes, expected: object) -> None:
    assert json_object.id_in(Record(1, text)) == expected


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"1", b'{"a": "\xff"}', b'{"a": "\\ud800"}', b"[" * 100_000])
def test_what_is_no_object_is_refused(text: bytes) -> None:
    with pytest.raises(InvalidRequest, match="the line "):
        json_object.fields_of(Record(1, text))


def test_an_object_has_its_fields() -> None:
    assert json_object.fields_of(Record(1, b'{"a": null}')) == {"a": None}
