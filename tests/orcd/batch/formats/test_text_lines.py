from __future__ import annotations

import pytest

from orcd.batch.formats.defaults import Defaults
from orcd.batch.formats.line_format import Record
from orcd.batch.formats.text_lines import TextLines
from orcd.errors import InvalidRequest
from orcd.request import Request


def test_a_line_is_the_message_of_a_user() -> None:
    lines = TextLines(Defaults({"seed": 1}))
    [record] = lines.records([(1, '{"größer"}\r\n'.encode())])
    assert lines.parse(record).request == Request(messages=[{"role": "user", "content": '{"größer"}'}], seed=1)
    assert lines.caller_id(record) is None


def test_a_line_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="not valid text in UTF-8"):
        TextLines(Defaults()).parse(Record(1, b"\xff"))
