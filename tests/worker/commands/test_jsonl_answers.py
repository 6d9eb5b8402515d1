"""Answers line by line."""

from __future__ import annotations

import json

import msgspec
import pytest

from orcd.errors import InvalidRequest
from worker.commands.jsonl_answers import answer_lines, write_json


class Question(msgspec.Struct, forbid_unknown_fields=True):
    number: int


def answer(question: Question) -> dict[str, int]:
    if question.number < 0:
        raise InvalidRequest("number: must not be\nnegative")
    return {"double": 2 * question.number}


def test_every_line_gets_one_answer_or_one_error_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [b'{"number": 4}\n', b" \n", b'{"number": -1}\n', b"broken\n", b"\xff\n", b"[" * 100_000, b'{"num": 1}']
    answer_lines(lines, Question, answer)
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    not_json = {"error": "the line is not valid JSON in UTF-8"}
    assert answers[:4] == [{"double": 8}, {"error": "number: must not be negative"}, not_json, not_json]
    assert [answer.keys() for answer in answers[4:]] == [{"error"}, {"error"}]


def test_a_line_has_no_other_end_in_it(capsys: pytest.CaptureFixture[str]) -> None:
    write_json({"text": "a\u2028b\nc"})
    line = capsys.readouterr().out
    assert line.splitlines() == [line.rstrip("\n")]
    assert json.loads(line) == {"text": "a\u2028b\nc"}
