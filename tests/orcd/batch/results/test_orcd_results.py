from __future__ import annotations

import msgspec
import pytest

from orcd import jsonl
from orcd.batch.line import Line, LineName
from orcd.batch.place import Place
from orcd.batch.results.orcd_results import OrcdResults, record
from orcd.errors import VramOom
from orcd.events import TokenLogprob
from orcd.request import Request
from orcd.result import Choice, Result, ToolCall


def line_of(file: str | None) -> Line:
    name = LineName(Place(0, 3), file, "a", "batch-1-3-0123456789ab")
    return Line(name, 1, "batch-1-3-0123456789ab", Request(prompt="rain"), "/v1/completions", {}, 5, 10)


def result_of(*choices: Choice) -> Result:
    return Result("job-1", "succeeded", list(choices), 3, 2, 1, 2, 3)


def test_a_result_of_one_choice_is_its_text() -> None:
    assert record(result_of(Choice("frog", [1, 2], "stop"))) == {
        "text": "frog",
        "finish_reason": "stop",
        "tokens_in": 3,
        "tokens_out": 2,
        "queue_ms": 1,
        "ttft_ms": 2,
        "decode_ms": 3,
    }


def test_a_result_with_structured_output_says_whether_it_has_its_form() -> None:
    written = record(msgspec.structs.replace(result_of(Choice("{}", [1], "stop")), schema_valid=True))
    assert (written["text"], written["schema_valid"]) == ("{}", True)


def test_log_probabilities_of_the_prompt_are_written_if_there_are_any() -> None:
    told = [None, TokenLogprob(1, -0.5, {2: -0.25}, {1: b"a", 2: b"b"})]
    written = record(msgspec.structs.replace(result_of(Choice("frog", [1], "stop")), prompt_logprobs=told))
    assert msgspec.convert(written["prompt_logprobs"], list[TokenLogprob | None], str_keys=True) == told
    assert "choices" not in written


@pytest.mark.parametrize(
    "choices",
    [
        [Choice("frog", [1], "stop"), Choice("pond", [2], "length")],
        [Choice("frog", [1], "stop", reasoning="It wants a frog.")],
        [Choice("frog", [1], "stop", logprobs=[TokenLogprob(1, -0.5)])],
        [Choice("frog", [1], "stop", tool_calls=[ToolCall("a1", "leap", "{}")])],
    ],
    ids=["several choices", "reasoning", "log probabilities", "calls"],
)
def test_a_result_of_more_than_one_text_holds_all_choices_whole(choices: list[Choice]) -> None:
    written = record(result_of(*choices))
    assert (written["text"], written["finish_reason"]) == ("frog", "stop")
    assert msgspec.convert(written["choices"], list[Choice], str_keys=True) == choices


def test_a_result_has_the_lines_number_and_id_and_the_file_of_several() -> None:
    result = result_of(Choice("frog", [1, 2], "stop"))
    written = OrcdResults().result(line_of(None), result)
    assert list(written)[:4] == ["line", "id", "job_id", "text"]
    assert (written["line"], written["id"], written["text"]) == (3, "a", "frog")
    assert OrcdResults().result(line_of("b.jsonl"), result)["file"] == "b.jsonl"
    assert jsonl.encode(written).startswith(OrcdResults.START)
    assert OrcdResults().job_id(jsonl.encode(written)) == "batch-1-3-0123456789ab"


def test_a_failure_names_line_and_id_and_a_job_if_there_was_one() -> None:
    assert OrcdResults().failure(line_of("b").name, VramOom("does not fit")) == {
        "line": 3,
        "file": "b",
        "id": "a",
        "job_id": "batch-1-3-0123456789ab",
        "code": "VRAM_OOM",
        "message": "does not fit",
    }
    broken = OrcdResults().failure(LineName(Place(0, 4), None, None), VramOom("x"))
    assert broken == {"line": 4, "id": None, "code": "VRAM_OOM", "message": "x"}
