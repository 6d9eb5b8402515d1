from __future__ import annotations

import pytest

from orcd.batch.formats import line_format
from orcd.batch.formats.line_format import Record, filled, parse_fields
from orcd.errors import InvalidRequest


def test_lines_without_text_are_no_records_and_space_around_text_is_none() -> None:
    assert list(filled([(1, b" \r\n"), (2, b"\ta \r\n"), (3, b"\n"), (4, b"b")])) == [Record(2, b"a"), Record(4, b"b")]


def test_a_record_longer_than_any_request_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_format, "MAX_REQUEST_BYTES", 3)
    line_format.check_length(Record(1, b"abc"))
    with pytest.raises(InvalidRequest, match="the line is longer than 3 bytes"):
        line_format.check_length(Record(1, b"abcd"))


def test_fields_become_a_checked_request_with_the_url_that_openai_would_have_for_it() -> None:
    prompt = parse_fields("a", {"prompt": "rain", "model": "m"})
    assert (prompt.id, prompt.request.prompt, prompt.url, prompt.body) == (
        "a",
        "rain",
        "/v1/completions",
        {"model": "m"},
    )
    assert parse_fields(None, {"messages": [{"role": "user"}]}).url == "/v1/chat/completions"
    for fields in ({"prompt": 1}, {"prompt": "\ud800"}, {"messages": [{"role": "user", "content": float("nan")}]}):
        with pytest.raises(InvalidRequest):
            parse_fields(None, fields)
