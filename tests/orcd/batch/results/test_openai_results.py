from __future__ import annotations

import pytest

from orcd import jsonl
from orcd.batch.line import Line, LineName
from orcd.batch.place import Place
from orcd.batch.results.openai_results import OpenaiResults
from orcd.errors import Cancelled, Expired, InvalidRequest, OrcdError, VramOom
from orcd.request import Request
from orcd.result import Choice, Result

JOB = "batch-1-3-0123456789ab"
BODY = {"messages": [{"role": "user", "content": "rain"}]}


def line_of(caller_id: str | None = "a", file: str | None = None) -> Line:
    name = LineName(Place(0, 3), file, caller_id, JOB)
    return Line(name, 1, JOB, Request(prompt="rain"), "/v1/chat/completions", BODY, 5, 10)


def test_a_result_is_the_response_that_openai_would_have_given() -> None:
    result = Result(JOB, "succeeded", [Choice("frog", [1, 2], "stop")], 3, 2, model="m")
    written = OpenaiResults().result(line_of(), result)
    assert list(written) == ["id", "custom_id", "response", "error"]
    assert (written["id"], written["custom_id"], written["error"]) == (f"batch_req_{JOB}", "a", None)
    assert (written["response"]["status_code"], written["response"]["request_id"]) == (200, JOB)
    body = written["response"]["body"]
    assert (body["object"], body["created"], body["model"]) == ("chat.completion", 5, "m")
    assert body["choices"][0]["message"]["content"] == "frog"
    assert body["usage"]["completion_tokens"] == 2
    assert jsonl.encode(written).startswith(OpenaiResults.START)
    assert OpenaiResults().job_id(jsonl.encode(written)) == JOB


def test_a_request_without_a_custom_id_has_its_place_for_one() -> None:
    result = Result(JOB, "succeeded", [Choice("frog", [1], "stop")])
    assert OpenaiResults().result(line_of(None), result)["custom_id"] == "3"


def test_a_failed_job_is_a_response_with_the_error() -> None:
    written = OpenaiResults().failure(line_of(file="b").name, VramOom("does not fit"))
    assert (written["custom_id"], written["line"], written["file"], written["error"]) == ("a", 3, "b", None)
    assert written["response"]["status_code"] == 503
    assert written["response"]["body"]["error"]["message"] == "does not fit"


@pytest.mark.parametrize(
    ("error", "code"), [(Cancelled("by hand"), "batch_cancelled"), (Expired("too late"), "batch_expired")]
)
def test_a_job_that_nobody_answered_has_no_response(error: OrcdError, code: str) -> None:
    written = OpenaiResults().failure(line_of().name, error)
    assert (written["response"], written["error"]) == (None, {"code": code, "message": error.message})


def test_a_broken_line_has_its_number_and_the_custom_id_if_it_has_one() -> None:
    for caller_id in ("a", None):
        written = OpenaiResults().failure(LineName(Place(1, 4), "b", caller_id), InvalidRequest("url: must be"))
        assert written == {
            "id": "batch_req_line-2.4",
            "custom_id": caller_id,
            "response": None,
            "error": {"code": "invalid_request", "message": "url: must be"},
            "line": 4,
            "file": "b",
        }
