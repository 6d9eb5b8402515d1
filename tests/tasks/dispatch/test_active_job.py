"""An active job turns ids into events that can be cut anywhere and gone on with by another worker."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcd.errors import LogDamaged, Poisoned
from orcd.events import End, Error, Position, Started, Token, tool_call_id
from orcd.request import Request, parse
from orcd.result import ToolCall, fold
from orcd.store.claim import Lease
from orcd.store.event_stream import Cursor
from orcd.store.token_log import LoggedEvent
from tasks.dispatch.active_job import ActiveJob
from tasks.dispatch.prompt_encoder import Prompt
from tests.tasks.dispatch.byte_model import READY
from tests.tasks.dispatch.byte_model import TOKENIZER as BYTES
from tests.tasks.dispatch.claims import claim
from tests.tasks.dispatch.small_tokenizer import END, PIECES, SPELLINGS, TOKENIZER
from worker import contract
from worker.text.detokenizer import Detokenizer
from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.call_syntax import HERMES


def _job(request: Request, log: tuple[LoggedEvent, ...] = (), attempt: int = 1) -> ActiveJob:
    prompt = Prompt([1, 2], contract.Sampling(max_tokens=100), lambda: Detokenizer(TOKENIZER, request.stop), SPELLINGS)
    return ActiveJob(claim(request, attempt, log=log), prompt, READY, lambda outcome: None)


def _engine(add: contract.Add, script: dict[int, list[int]], chunks: list[int]) -> list[contract.TokenOutput]:
    """What an engine would say that draws ``script[choice]`` whatever it is asked, ``chunks`` ids at a time."""
    outputs = []
    for choice in add.choices:
        ids = script[choice.index]
        at = len(choice.output_ids)
        assert tuple(ids[:at]) == choice.output_ids
        for size in chunks:
            if at < len(ids):
                taken = tuple(ids[at : at + size])
                at += size
                reason = ("stop" if ids[-1] == END else "length") if at >= len(ids) else None
                outputs.append(contract.TokenOutput("j", choice.index, taken, reason))
    return outputs


def _play(job: ActiveJob, script: dict[int, list[int]], chunks: list[int]) -> list[list[LoggedEvent]]:
    """The appends of a whole run; the token log holds each of them whole or not at all."""
    add = job.add()
    appends = [job.take_append().events]
    for output in _engine(add, script, chunks) if add else []:
        job.process(output)
        appends.append(job.take_append().events)
    return appends


def _flat(appends: list[list[LoggedEvent]]) -> tuple[LoggedEvent, ...]:
    return tuple(logged for events in appends for logged in events)


REQUEST = parse({"prompt": "x", "stop": ["stop", "b a"]})
IDS = st.lists(st.integers(1, len(PIECES) - 1), max_size=12).map(lambda ids: [*ids, END])
CHUNKS = st.lists(st.integers(1, 3), min_size=13, max_size=13)


@settings(max_examples=200)
@given(ids=IDS, chunks=CHUNKS, chunks_after=CHUNKS, cut=st.integers(0, 20))
def test_whoever_takes_over_at_any_event_ends_with_the_same_text(
    ids: list[int], chunks: list[int], chunks_after: list[int], cut: int
) -> None:
    undisturbed = [append for append in _play(_job(REQUEST), {0: ids}, chunks) if append]
    whole = fold("j", [logged.event for logged in _flat(undisturbed)])
    log = _flat(undisturbed[: min(cut, len(undisturbed) - 1)])
    rest = _flat(_play(_job(REQUEST, log, attempt=2), {0: ids}, chunks_after))
    resumed = fold("j", [logged.event for logged in (*log, *rest)])
    assert resumed.state == whole.state == "succeeded"
    assert resumed.choices == whole.choices
    positions = [logged.position for logged in (*log, *rest)]
    assert positions == sorted(set(positions)), "every entry id is above the one before"


@settings(max_examples=100)
@given(ids=IDS, chunks=CHUNKS)
def test_token_indices_count_from_one_without_a_gap_and_the_end_says_how_many(
    ids: list[int], chunks: list[int]
) -> None:
    events = [logged.event for logged in _flat(_play(_job(REQUEST), {0: ids}, chunks))]
    indices = [event.i + k for event in events if isinstance(event, Token) for k in range(len(event.ids))]
    end = events[-1]
    assert isinstance(end, End)
    assert indices == list(range(1, end.tokens_out + 1))
    text = "".join(event.t for event in events if isinstance(event, Token))
    assert end.text_sha256 == hashlib.sha256(text.encode()).hexdigest()
    assert not any(stop in text for stop in REQUEST.stop)


def test_a_stop_string_ends_the_choice_and_tells_the_engine() -> None:
    job = _job(REQUEST)
    assert job.add() is not None
    assert job.process(contract.TokenOutput("j", 0, (1, 8), None)) is None
    abort = job.process(contract.TokenOutput("j", 0, (7, 2), None))
    assert abort == contract.Abort("j#token-1", 0)
    append = job.take_append()
    assert append.final_state == "succeeded"
    assert job.result.text == "ast"
    assert job.result.choices[0].finish_reason == "stop"
    assert job.process(contract.TokenOutput("j", 0, (1,), None)) is None
    assert job.take_append().events == []


def test_ids_whose_text_is_held_back_are_drawn_again_after_the_engine_was_lost() -> None:
    job = _job(REQUEST)
    job.add()
    job.process(contract.TokenOutput("j", 0, (1, 5), None))  # 5 is half a character
    again = job.add()
    assert again is not None
    assert again.choices == (contract.Choice(0, (1,)),)
    job.process(contract.TokenOutput("j", 0, (5, 6), None))
    job.process(contract.TokenOutput("j", 0, (END,), "stop"))
    assert job.result.text == "aé"
    assert job.result.choices[0].token_ids == [1, 5, 6, END]


def test_two_choices_end_one_after_the_other_and_a_finished_one_is_not_generated_again() -> None:
    request = parse({"prompt": "x", "n": 2})
    job = _job(request)
    job.add()
    job.process(contract.TokenOutput("j", 1, (1, END), "stop"))
    log = tuple(job.take_append().events)
    heir = _job(request, log, attempt=2)
    add = heir.add()
    assert add is not None
    assert [choice.index for choice in add.choices] == [0]
    heir.process(contract.TokenOutput("j", 0, (2, 2), "length"))
    events = [logged.event for logged in (*log, *heir.take_append().events)]
    result = fold("j", events)
    assert [choice.text for choice in result.choices] == ["bb", "a"]
    assert [choice.finish_reason for choice in result.choices] == ["length", "stop"]
    cursor = Cursor()
    assert all(cursor.new_part(event) == event for event in events)


def test_appends_name_the_entry_that_they_follow_and_the_claim_that_writes_them() -> None:
    job = _job(REQUEST)
    job.add()
    first = job.take_append()
    job.process(contract.TokenOutput("j", 0, (1, 1), None))
    second = job.take_append()
    job.process(contract.TokenOutput("j", 0, (END,), "stop"))
    third = job.take_append()
    assert [append.after for append in (first, second, third)] == [Position(), Position(0, 1), Position(2, 0)]
    assert [logged.position for logged in third.events] == [Position(3, 0), Position(3, 1)]
    heir = _job(REQUEST, (*first.events, *second.events), attempt=2)
    assert heir.take_append().after == Position(2, 0)
    assert (first.lease, heir.take_append().lease) == (Lease(1, "token-1"), Lease(2, "token-2"))


def test_a_start_names_the_model_and_what_else_the_tokens_depend_on() -> None:
    (logged,) = _job(REQUEST).take_append().events
    assert logged.event == Started("j", READY.model, 1200, 1, READY.fingerprint)


def test_a_job_whose_log_cannot_be_written_ends_with_that_alone_even_behind_its_end() -> None:
    job = _job(REQUEST)
    job.add()
    job.process(contract.TokenOutput("j", 0, (1, END), "stop"))
    assert job.result.state == "succeeded"
    job.discard(LogDamaged("gone"))
    assert (job.ended, job.result.state, job.result.choices) == (True, "failed", [])
    assert job.result.error == Error("LOG_DAMAGED", "gone", retriable=False)


def test_an_error_of_the_engine_ends_the_job_with_its_code() -> None:
    job = _job(REQUEST)
    job.add()
    output = contract.TokenOutput("j", 0, (), "error", error_code="VRAM_OOM", error_message="can never fit")
    assert job.process(output) == contract.Abort("j#token-1")
    append = job.take_append()
    assert append.final_state == "failed"
    assert append.events[-1].event == Error("VRAM_OOM", "can never fit", retriable=True)
    assert job.add() is None


def test_a_job_that_cannot_begin_says_started_and_then_why() -> None:
    job = ActiveJob(claim(REQUEST), Poisoned("given up"), READY, lambda outcome: None)
    events = [logged.event for logged in job.take_append().events]
    assert isinstance(events[0], Started)
    assert events[1] == Error("POISONED", "given up", retriable=False)
    assert job.add() is None


CALLS_FORM = AnswerForm(HERMES).with_tools([{"function": {"name": "f"}}])
WRITTEN = '<tool_call>{"name": "f", "arguments": {"a": "é"}}</tool_call> <tool_call>{"name": "g"}</tool_call> bye'


def _caller(log: tuple[LoggedEvent, ...] = (), attempt: int = 1) -> ActiveJob:
    prompt = Prompt([1], contract.Sampling(max_tokens=200), lambda: Detokenizer(BYTES, form=CALLS_FORM), SPELLINGS)
    return ActiveJob(claim(Request(prompt="x"), attempt, log=log), prompt, READY, lambda outcome: None)


@pytest.mark.parametrize("cut", range(0, 100, 9))
def test_calls_of_tools_have_the_same_ids_whoever_goes_on_with_them(cut: int) -> None:
    script = {0: [*WRITTEN.encode()]}
    log = _flat(_play(_caller(), script, [1] * len(script[0]))[:cut])
    events = [logged.event for logged in (*log, *_flat(_play(_caller(log, 2), script, [3] * len(script[0]))))]
    [choice] = fold("j", events).choices
    assert choice.tool_calls == [
        ToolCall(tool_call_id("j", 0, 0), "f", '{"a": "é"}'),
        ToolCall(tool_call_id("j", 0, 1), "g", "{}"),
    ]
    assert (choice.text, choice.finish_reason) == (" bye", "length")
    begun = [call.name for event in events if isinstance(event, Token) for call in event.tool_calls or () if call.id]
    assert begun == ["f", "g"], "the id and the name are in the first piece alone"


@pytest.mark.parametrize(
    ("written", "is_whole"), [(WRITTEN, None), ('{"a": 1}', True), ('{"a": ', False), ("<tool_call>", False)]
)
def test_calls_in_the_place_of_a_document_are_no_broken_one(written: str, is_whole: bool | None) -> None:
    request = parse({"prompt": "x", "response_format": {"type": "json_object"}})
    prompt = Prompt([1], contract.Sampling(max_tokens=200), lambda: Detokenizer(BYTES, form=CALLS_FORM), SPELLINGS)
    job = ActiveJob(claim(request), prompt, READY, lambda outcome: None)
    job.add()
    job.process(contract.TokenOutput("j", 0, tuple(written.encode()), "stop"))
    assert job.result.schema_valid is is_whole


@pytest.mark.parametrize(
    ("written", "grammar", "finish"),
    [
        (WRITTEN, "the grammar", "stop"),
        (WRITTEN[:60], "the grammar", "stop"),
        (WRITTEN[:45], "the grammar", "length"),
        ("bye", "the grammar", "length"),
        (WRITTEN, "", "length"),
    ],
)
def test_calls_that_a_grammar_has_ended_at_the_limit_are_whole(written: str, grammar: str, finish: str) -> None:
    prompt = Prompt(
        [1], contract.Sampling(max_tokens=9), lambda: Detokenizer(BYTES, form=CALLS_FORM), SPELLINGS, grammar
    )
    job = ActiveJob(claim(Request(prompt="x")), prompt, READY, lambda outcome: None)
    job.add()
    job.process(contract.TokenOutput("j", 0, tuple(written.encode()), "length"))
    assert job.result.finish_reason == finish


@pytest.mark.parametrize(("waited_s", "priority"), [(0, 9), (10, 8), (50, 4), (100, 0), (1000, 0)])
def test_a_job_is_the_more_urgent_in_the_engine_the_longer_it_has_waited(waited_s: int, priority: int) -> None:
    waiting = claim(Request(prompt="x", priority=9), created_ms=1000, claimed_ms=1000 + 1000 * waited_s)
    prompt = Prompt([1, 2], contract.Sampling(max_tokens=100), lambda: Detokenizer(TOKENIZER, ()), SPELLINGS)
    job = ActiveJob(waiting, prompt, READY, lambda outcome: None, ageing_s=100)
    add = job.add()
    assert add is not None
    assert add.priority == priority


@pytest.mark.parametrize(
    ("fields", "text", "ends", "is_whole"),
    [
        ({}, "ab", True, None),
        ({"response_format": {"type": "json_object"}}, '{"a": 1}', True, True),
        ({"response_format": {"type": "json_object"}}, '{"a": 1}', False, True),
        ({"response_format": {"type": "json_object"}}, '{"a": ', False, False),
        ({"structured_outputs": {"regex": "a*"}}, "aa", True, True),
        ({"structured_outputs": {"regex": "a*"}}, "aa", False, False),
        ({"structured_outputs": {"regex": "a*"}, "stop": ["b"]}, "aa", True, False),
    ],
)
def test_a_result_says_whether_its_answer_is_a_whole_document_of_its_form(
    fields: dict[str, Any], text: str, ends: bool, is_whole: bool | None
) -> None:
    request = parse({"prompt": "x", **fields})
    prompt = Prompt(
        [1], contract.Sampling(max_tokens=100), lambda: Detokenizer(BYTES, request.stop), SPELLINGS, "the grammar"
    )
    job = ActiveJob(claim(request), prompt, READY, lambda outcome: None)
    add = job.add()
    assert add is not None
    assert add.grammar == "the grammar"
    job.process(contract.TokenOutput("j", 0, tuple(text.encode()), "stop" if ends else "length"))
    assert job.result.schema_valid is is_whole
