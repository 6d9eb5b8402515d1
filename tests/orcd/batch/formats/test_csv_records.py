from __future__ import annotations

import pytest

from orcd.batch.formats import csv_records
from orcd.batch.formats.csv_records import CsvRecords, PromptTemplate
from orcd.batch.formats.defaults import Defaults
from orcd.batch.formats.line_format import Record
from orcd.errors import InvalidRequest


def lines(text: bytes) -> list[tuple[int, bytes]]:
    return list(enumerate(text.splitlines(keepends=True), 1))


def prompts(text: bytes, template: str | None = None) -> list[object]:
    """What each row asks, or what is wrong with it."""
    csv = CsvRecords(Defaults(), template)
    found: list[object] = []
    for record in csv.records(lines(text)):
        try:
            messages = csv.parse(record).request.messages
            found.append(messages and messages[0]["content"])
        except InvalidRequest as error:
            found.append(error.message)
    return found


def test_the_column_prompt_is_the_message() -> None:
    assert prompts(b"id,prompt\n1,rain\n2,snow\n") == ["rain", "snow"]


def test_a_template_makes_prompts_of_columns() -> None:
    table = b"title,the text\nA,one\nB,two\n"
    assert prompts(table, "{title}: {the text} {{x}}") == ["A: one {x}", "B: two {x}"]


def test_quoted_fields_hold_separators_quotes_and_line_ends() -> None:
    table = b'prompt,note\r\n"a, ""b""\r\nc",x\r\n\r\nd "e" f,y\r\n'
    assert prompts(table) == ['a, "b"\r\nc', 'd "e" f']


def test_a_record_has_the_number_of_its_first_line() -> None:
    table = b'\nprompt\n"one\ntwo"\nthree\n'
    assert [record.number for record in CsvRecords(Defaults()).records(lines(table))] == [3, 5]


@pytest.mark.parametrize("separator", [b",", b";", b"\t"])
def test_the_separator_is_found(separator: bytes) -> None:
    assert prompts(separator.join([b"id", b"prompt\n1"]) + separator + b"rain\n") == ["rain"]


def test_a_column_names_the_rows() -> None:
    csv = CsvRecords(Defaults())
    records = list(csv.records(lines(b"prompt,custom_id\nrain,a\nsnow,\n,b\n")))
    assert [csv.caller_id(record) for record in records] == ["a", None, "b"]
    assert csv.parse(records[0]).id == "a"
    assert csv.caller_id(Record(9, b"only one field")) is None


def test_broken_rows_say_what_is_wrong() -> None:
    table = b'id,prompt\n1\n2,\n3,\xff\n4,"a"b\n5,good\n'
    assert prompts(table) == [
        "the row has 1 fields, the header 2",
        "prompt: must not be empty",
        "the row is not valid text in UTF-8",
        "the row is not valid CSV: ',' expected after '\"'",
        "good",
    ]


def test_a_quote_that_is_never_closed_does_not_swallow_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_records, "MAX_REQUEST_BYTES", 40)
    found = prompts(b'prompt\n"open\n' + b"x" * 50 + b"\nlast\n")
    assert str(found[0]).startswith("the row is not valid CSV")
    assert found[1:] == ["last"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (b"text,title\n", r"there is no column 'prompt', only 'text', 'title'; say with --prompt"),
        (b"prompt,prompt\n", "several columns are called 'prompt'"),
        (b"prompt\xff\n", "not valid text in UTF-8"),
    ],
)
def test_a_header_that_cannot_be_used_is_an_error_of_the_file(table: bytes, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        list(CsvRecords(Defaults()).records(lines(table)))


def test_a_file_without_rows_has_no_requests() -> None:
    assert prompts(b"") == prompts(b"\n\n") == prompts(b"prompt\n") == []


@pytest.mark.parametrize("text", ["{", "}", "{}", "{text!r}", "{text:>5}", "{0} {"])
def test_a_template_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--prompt: "):
        PromptTemplate(text)


def test_a_template_reaches_nothing_but_columns() -> None:
    template = PromptTemplate("{text.__class__}")
    assert template.columns == ["text.__class__"]
    with pytest.raises(InvalidRequest, match=r"there is no column 'text\.__class__'"):
        list(CsvRecords(Defaults(), "{text.__class__}").records(lines(b"text\na\n")))
