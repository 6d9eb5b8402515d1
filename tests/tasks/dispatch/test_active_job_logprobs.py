"""Log probabilities in a job's events and result, packed and not: every reader has the same."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from orcd.events import Event, Packing, Token, TokenLogprob, decode_event, encode_event
from orcd.request import parse
from orcd.result import Choice, fold
from orcd.store.token_log import LoggedEvent
from tasks.celery_ext.result_backend import in_json
from tasks.dispatch.active_job import ActiveJob
from tasks.dispatch.prompt_encoder import Prompt
from tests.tasks.dispatch.byte_model import READY
from tests.tasks.dispatch.claims import claim
from tests.tasks.dispatch.small_tokenizer import END, PIECES, SPELLINGS, TOKENIZER
from tests.worker.logprob_records import TokenLogprobs, read, record
from worker import contract
from worker.text.detokenizer import Detokenizer

PACKS = pytest.mark.parametrize("packs", [False, True], ids=["lists", "packed"])
IDS = (1, 5, 6, 8, 1, END)  # two halves of a character, and the beginning of a stop string
REPORTED = [
    TokenLogprobs(-0.1, (1, 5), (-0.1, -2.5)),
    TokenLogprobs(-1 / 3, (5, 20), (-1 / 3, -0.75)),
    TokenLogprobs(-9.0, (1, 2), (-0.5, -1.0)),
    TokenLogprobs(-0.0),
    TokenLogprobs(-0.5, (1,), (-0.5,)),
    TokenLogprobs(-0.25, (2, 3), (-0.5, -1.0)),
]


def job_of(*log: LoggedEvent, packs: bool, **fields: Any) -> ActiveJob:
    request = parse({"prompt": "x", "stop": ["stop"], **fields})
    sampling = contract.Sampling(max_tokens=9, logprobs=request.logprobs, prompt_logprobs=request.prompt_logprobs)
    prompt = Prompt([2, 1], sampling, lambda: Detokenizer(TOKENIZER, request.stop), SPELLINGS)
    packing = Packing.TOKENS if packs else Packing.NOTHING
    return ActiveJob(claim(request, 1 + bool(log), log=log, packing=packing), prompt, READY, lambda outcome: None)


def play(job: ActiveJob, start: int = 0, size: int = 1, end: int = len(IDS)) -> list[LoggedEvent]:
    """What comes into the log when the engine draws `IDS` from ``start`` on, so many at a time."""
    assert job.add() is not None
    cuts = [*range(start, end, size), end]
    for first, last in pairwise(cuts):
        records = b"".join(record(each, 2) for each in REPORTED[first:last])
        job.process(contract.TokenOutput("j", 0, IDS[first:last], "stop" if last == len(IDS) else None, records))
    return job.take_append().events


def read_by_clients(log: list[LoggedEvent]) -> list[Event]:
    """The events as those have them who read the log in Redis."""
    return [decode_event(encode_event(logged.event)) for logged in log]


def spelt(token_id: int, reported: TokenLogprobs) -> TokenLogprob:
    """What readers are told of a token; numbers have 32 bits on the way."""
    [(own, top_ids, top_logprobs)] = read(record(reported, 2), 2)
    pieces = {each: PIECES[each] if each < len(PIECES) else b"" for each in (token_id, *top_ids)}
    return TokenLogprob(token_id, own, dict(zip(top_ids, top_logprobs, strict=True)), pieces)


EXPECTED = [spelt(*each) for each in zip(IDS, REPORTED, strict=True)]


def in_celery(job: ActiveJob) -> Any:
    """The job's result as Celery's backend has it, and as a chain hands it on."""
    plain = msgspec.to_builtins(job.result, str_keys=True, enc_hook=list)
    assert json.loads(json.dumps(job.result.__json__())) == json.loads(msgspec.json.encode(plain))
    return msgspec.json.encode(job.result, enc_hook=in_json)


@PACKS
@pytest.mark.parametrize("size", [1, 2, 6])
def test_readers_and_celery_have_the_log_probabilities_and_bytes_of_every_token(packs: bool, size: int) -> None:
    job = job_of(packs=packs, logprobs=2)
    log = play(job, size=size)
    tokens = [logged.event for logged in log if isinstance(logged.event, Token)]
    assert any(token.packed_logprobs is not None for token in tokens) == packs
    result = fold("j", read_by_clients(log))
    assert result.choices == [Choice("aésta", [*IDS], "stop", logprobs=EXPECTED)]
    assert in_celery(job) == msgspec.json.encode(result)


@pytest.mark.parametrize(("first_packs", "then_packs"), [(True, True), (False, True), (True, False)])
@pytest.mark.parametrize("cut", [2, 3, 4])
def test_whoever_takes_over_goes_on_with_them_whatever_the_log_has_of_the_others(
    first_packs: bool, then_packs: bool, cut: int
) -> None:
    log = play(job_of(packs=first_packs, logprobs=2))[:cut]
    num_logged = sum(len(logged.event.ids) for logged in log if isinstance(logged.event, Token))
    logged = [LoggedEvent(each.position, event) for each, event in zip(log, read_by_clients(log), strict=True)]
    heir = job_of(*logged, packs=then_packs, logprobs=2)
    log += play(heir, start=num_logged)
    result = fold("j", read_by_clients(log))
    assert result.choices[0].logprobs == EXPECTED
    assert in_celery(heir) == msgspec.json.encode(result)


@PACKS
def test_what_was_held_when_the_engine_died_is_drawn_and_reported_again(packs: bool) -> None:
    job = job_of(packs=packs, logprobs=2)
    log = play(job, end=2)  # half a character is held
    log += play(job, start=1)
    result = fold("j", read_by_clients(log))
    assert result.choices[0].logprobs == EXPECTED
    assert in_celery(job) == msgspec.json.encode(result)


@PACKS
def test_each_choice_has_its_own_and_a_request_for_none_has_none(packs: bool) -> None:
    job = job_of(packs=packs, logprobs=0, n=2)
    assert job.add() is not None
    for choice, logprob in ((1, -1.0), (0, -2.0), (1, -3.0)):
        told = record(TokenLogprobs(logprob), 0)
        job.process(contract.TokenOutput("j", choice, (1,), "length" if logprob < -1 else None, told))
    told_of = [[each.logprob for each in choice.logprobs or ()] for choice in job.result.choices]
    assert told_of == [[-2.0], [-1.0, -3.0]]
    silent = job_of(packs=packs)
    assert silent.add() is not None
    silent.process(contract.TokenOutput("j", 0, (1,), "length"))
    assert silent.result.choices[0].logprobs is None


@PACKS
def test_log_probabilities_of_the_prompt_are_in_the_first_event_and_are_not_asked_for_again(packs: bool) -> None:
    wishes: dict[str, Any] = {"packs": packs, "prompt_logprobs": 0, "stop": ["never"], "n": 2}
    job = job_of(**wishes)
    add = job.add()
    assert add is not None and add.sampling.prompt_logprobs == 0
    job.process(contract.TokenOutput("j", 1, (0,)))
    job.process(contract.TokenOutput("j", 0, (0,), prompt_logprobs=record(TokenLogprobs(-0.5), 0)))
    job.process(contract.TokenOutput("j", 0, (0,)))
    log = job.take_append().events
    tokens = [event for event in read_by_clients(log) if isinstance(event, Token)]
    expected = [None, TokenLogprob(1, -0.5, {}, {1: PIECES[1]})]
    assert [token.prompt_logprobs for token in tokens] == [None, expected, None]
    assert job.result.prompt_logprobs == expected
    before, behind = job_of(*log[:2], **wishes).add(), job_of(*log[:3], **wishes).add()
    assert before is not None and before.sampling.prompt_logprobs == 0
    assert behind is not None and behind.sampling.prompt_logprobs is None
