"""Results, folded from events."""

from __future__ import annotations

import json

import msgspec
import pytest
from kombu.utils.json import dumps

from orcd.errors import BY_CODE, OrcdError, Poisoned
from orcd.events import End, Error, Loading, Queued, Started, Token, TokenLogprob, ToolCallDelta
from orcd.result import Choice, Result, ResultBuilder, ToolCall, exception, fold

END = End("stop", 3, 5, 11, 22, 33, "0" * 64)
STARTED = Started("j", "m", 1, 1)


def test_a_result_holds_what_the_events_said():
    events = [Queued(1), Loading(50), STARTED, Token("Hel", 1, [5, 6]), Token("lo", 3, [7]), END]
    assert fold("j", events) == Result(
        job_id="j",
        state="succeeded",
        choices=[Choice("Hello", [5, 6, 7], "stop")],
        tokens_in=3,
        tokens_out=5,
        queue_ms=11,
        ttft_ms=22,
        decode_ms=33,
        model="m",
    )


@pytest.mark.parametrize("schema_valid", [True, False, None])
def test_a_result_says_whether_its_answers_have_their_form(schema_valid):
    end = msgspec.structs.replace(END, schema_valid=schema_valid)
    assert fold("j", [STARTED, Token("{}", 1, [5]), end]).schema_valid is schema_valid
    assert fold("j", [STARTED, Token("{", 1, [5])]).schema_valid is None


def test_a_result_says_how_much_of_the_prompt_was_cached():
    assert fold("j", [STARTED, msgspec.structs.replace(END, cached_tokens=2)]).cached_tokens == 2
    assert fold("j", [STARTED, END]).cached_tokens == fold("j", [STARTED]).cached_tokens == 0


def test_the_text_is_the_first_choice_s():
    assert fold("j", [Token("b", 1, [1], choice=1), Token("a", 1, [2]), END]).text == "a"
    assert fold("j", [Token("b", 1, [1], choice=1), Token("a", 1, [2]), END]).choices[1].text == "b"
    assert fold("j", [Queued(1)]).text == ""


def test_a_result_says_which_model_answered_and_why_it_stopped():
    result = fold("j", [STARTED, Token("a", 1, [2]), END])
    assert (result.model, result.finish_reason) == ("m", "stop")
    waiting = fold("j", [Queued(1)])
    assert (waiting.model, waiting.finish_reason) == (None, None)


def test_a_result_names_the_fingerprints_that_its_tokens_come_from_in_order():
    starts = [Started("j", "m", 1, attempt, name) for attempt, name in enumerate(("a", "b", "b", "", "a"), 1)]
    assert fold("j", starts).fingerprints == ["a", "b"]
    assert fold("j", [*starts[1:3], END]).fingerprints == ["b"]
    assert fold("j", [STARTED, END]).fingerprints == []


def test_a_result_raises_the_error_of_a_failed_job_and_else_gives_itself():
    result = fold("j", [STARTED, Token("a", 1, [2]), END])
    assert result.raise_for_error() is result
    with pytest.raises(Poisoned, match="given up"):
        fold("j", [STARTED, Error("POISONED", "given up", False)]).raise_for_error()


def test_every_choice_has_its_own_finish():
    events = [
        Token("b", 1, [1], choice=1),
        Token("", 2, [], choice=1, finish="length"),
        Token("a", 1, [2]),
        Token("", 2, [], finish="stop"),
    ]
    assert [choice.finish_reason for choice in fold("j", [*events, END]).choices] == ["stop", "length"]
    assert [choice.finish_reason for choice in fold("j", events[:3]).choices] == [None, "length"]


def test_a_job_that_ends_before_any_token_has_an_empty_choice():
    assert fold("j", [STARTED, END]).choices == [Choice("", [], "stop")]


def test_reasoning_and_commentary_are_kept_apart_from_the_answer():
    events = [
        Token("", 1, [1], analysis="hm, "),
        Token("An", 2, [2, 3], analysis="well.", commentary="f()"),
        Token("swer", 4, [4]),
        END,
    ]
    choice = fold("j", events).choices[0]
    assert (choice.text, choice.reasoning, choice.commentary) == ("Answer", "hm, well.", "f()")
    plain = fold("j", [Token("x", 1, [1]), END]).choices[0]
    assert plain.reasoning is plain.commentary is plain.logprobs is plain.tool_calls is None


def test_calls_of_tools_are_put_together():
    events = [
        Token("", 1, [1], tool_calls=[ToolCallDelta(0, "id0", "f", "{")]),
        Token("so", 2, [2, 3], tool_calls=[ToolCallDelta(0, arguments="}"), ToolCallDelta(1, "id1", "g", "{}")]),
        END,
    ]
    choice = fold("j", events).choices[0]
    assert (choice.text, choice.finish_reason) == ("so", "stop")
    assert choice.tool_calls == [ToolCall("id0", "f", "{}"), ToolCall("id1", "g", "{}")]


def test_logprobs_line_up_with_the_tokens():
    events = [
        Token("ab", 1, [1, 2], logprobs=[TokenLogprob(1, -1.0), TokenLogprob(2, -2.0)]),
        Token("c", 3, [3], logprobs=[TokenLogprob(3, -3.0, {3: -3.0})]),
    ]
    choice = fold("j", events).choices[0]
    assert [logprob.id for logprob in choice.logprobs] == choice.token_ids


def test_log_probabilities_of_the_prompt_are_the_jobs_whoever_brought_them():
    told = [None, TokenLogprob(1, -1.0)]
    first = Token("b", 1, [2], prompt_logprobs=told, prompt_start=b"x")
    events = [Token("a", 1, [1], choice=1), first, Token("c", 2, [3])]
    for result in fold("j", events), fold("j", [*events, END]):
        assert (result.prompt_logprobs, result.prompt_start) == (told, b"x")
    assert fold("j", events[:1]).prompt_logprobs is None


@pytest.mark.parametrize(
    ("code", "state"), [("CANCELLED", "cancelled"), ("EXPIRED", "expired"), ("CUDA_ERROR", "failed")]
)
def test_a_failed_job_keeps_its_error_and_what_it_had_generated(code, state):
    error = Error(code, "why", True)
    result = fold("j", [STARTED, Token("par", 1, [1, 2]), error])
    assert (result.state, result.error, result.text, result.tokens_out) == (state, error, "par", 2)
    assert result.choices[0].finish_reason is None


def test_a_builder_tells_the_state_so_far():
    builder = ResultBuilder("j")
    states = []
    for event in (Queued(1), STARTED, Token("a", 1, [1]), Queued(1), END):
        builder.add(event)
        states.append(builder.result().state)
    assert states == ["queued", "running", "running", "queued", "succeeded"]


def test_a_result_taken_early_does_not_change_later():
    builder = ResultBuilder("j")
    builder.add(Token("a", 1, [1]))
    early = builder.result()
    builder.add(Token("b", 2, [2]))
    assert early.choices == [Choice("a", [1])]


def test_the_representation_shows_no_text():
    events = [Token("CANARY", 1, [1], analysis="CANARY"), Error("INTERNAL", "CANARY", False)]
    assert repr(fold("j", events)) == str(fold("j", events)) == "<Result j failed error=INTERNAL tokens_out=1>"
    assert repr(fold("j", [events[0], END])) == (
        "<Result j succeeded finish_reason=stop tokens_in=3 tokens_out=5 tokens_per_s=121.2 queue_ms=11 "
        "first_token_ms=22 choices=1>"
    )


def test_celery_stores_plain_values():
    logprobs = [TokenLogprob(1, -1.0, {1: -1.0}, {1: b"a"})]
    token = Token("a", 1, [1], logprobs=logprobs, prompt_logprobs=[None, *logprobs])
    stored = json.loads(dumps(fold("j", [token, END])))
    assert stored["prompt_logprobs"] == [None, *stored["choices"][0]["logprobs"]]
    assert (stored["job_id"], stored["state"], stored["error"]) == ("j", "succeeded", None)
    assert stored["choices"][0]["text"] == "a"
    assert stored["choices"][0]["logprobs"] == [{"id": 1, "logprob": -1.0, "top": {"1": -1.0}, "pieces": {"1": "YQ=="}}]
    failed = json.loads(dumps(fold("j", [Error("EXPIRED", "too late", False)])))
    assert failed["error"]["code"] == "EXPIRED"


@pytest.mark.parametrize("code", BY_CODE)
def test_an_error_becomes_the_exception_with_its_code(code):
    error = exception(Error(code, "one line", False))
    assert type(error) is BY_CODE[code]
    assert (error.code, error.message) == (code, "one line")


def test_a_code_of_a_newer_worker_becomes_the_base_class():
    assert type(exception(Error("FROM_THE_FUTURE", "x", False))) is OrcdError
