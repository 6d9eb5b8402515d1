from __future__ import annotations

import pytest

from orcd.batch.formats.defaults import Defaults
from orcd.batch.formats.line_format import Record
from orcd.batch.formats.orcd_lines import OrcdLines
from orcd.errors import InvalidRequest
from orcd.request import Request


@pytest.mark.parametrize("name", ["id", "custom_id"])
def test_a_line_is_a_request_with_an_id(name: str) -> None:
    record = Record(1, b'{"%s": "a", "prompt": "rain", "seed": 1}' % name.encode())
    lines = OrcdLines(Defaults({"max_tokens": 5}))
    parsed = lines.parse(record)
    assert (parsed.id, parsed.request) == ("a", Request(prompt="rain", seed=1, max_tokens=5))
    assert lines.caller_id(record) == "a"


@pytest.mark.parametrize("ids", [b'"id": 1, "custom_id": 1', b'"id": [1]', b'"id": true', b'"id": 1.5'])
def test_an_id_is_one_text_or_whole_number(ids: bytes) -> None:
    with pytest.raises(InvalidRequest, match="id: give one id"):
        OrcdLines(Defaults()).parse(Record(1, b'{"prompt": "a", %s}' % ids))


def test_every_line_with_text_is_a_record() -> None:
    assert [record.number for record in OrcdLines(Defaults()).records([(1, b"\n"), (2, b"x\n")])] == [2]
