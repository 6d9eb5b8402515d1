"""The end of a job says how much of its prompt was in the prefix cache when it was started."""

from __future__ import annotations

from orcd.events import Token
from orcd.request import Request
from orcd.store.token_log import LoggedEvent
from tasks.dispatch.active_job import ActiveJob
from tasks.dispatch.prompt_encoder import Prompt
from tests.tasks.dispatch.byte_model import READY
from tests.tasks.dispatch.claims import claim
from tests.tasks.dispatch.small_tokenizer import END, SPELLINGS, TOKENIZER
from worker import contract
from worker.text.detokenizer import Detokenizer

PROMPT = Prompt([1, 2, 3], contract.Sampling(max_tokens=100), lambda: Detokenizer(TOKENIZER, ["stop"]), SPELLINGS)


def job(n: int = 1, log: tuple[LoggedEvent, ...] = ()) -> ActiveJob:
    return ActiveJob(claim(Request(prompt="x", n=n), log=log), PROMPT, READY, lambda outcome: None)


def drawn(cached_tokens: int, *ids: int, choice: int = 0, reason: contract.FinishReason | None = None):
    return contract.TokenOutput("j", choice, ids, reason, cached_tokens=cached_tokens)


def test_it_is_known_also_when_a_stop_string_ends_the_answer() -> None:
    stopped = job()
    stopped.add()
    stopped.process(drawn(2, 1, 8))
    stopped.process(drawn(2, 7, 2))
    assert stopped.ended
    assert stopped.result.cached_tokens == 2


def test_of_several_choices_it_is_that_of_the_one_that_computed_the_prompt() -> None:
    several = job(n=2)
    several.add()
    several.process(drawn(0, 1))
    several.process(drawn(2, 1, END, choice=1, reason="stop"))
    several.process(drawn(0, END, reason="stop"))
    assert several.result.cached_tokens == 0


def test_of_a_job_that_is_started_again_it_is_that_of_the_last_start() -> None:
    restarted = job()
    restarted.add()
    restarted.process(drawn(2, 1))
    restarted.add()
    restarted.process(drawn(0, 1, END, reason="stop"))
    assert restarted.result.cached_tokens == 0
    resumed = job(log=tuple(restarted.take_append().events[:2]))
    assert isinstance(resumed.claim.log[-1].event, Token)
    resumed.add()
    resumed.process(drawn(1, 1, END, reason="stop"))
    assert resumed.result.cached_tokens == 1


def test_without_an_engine_it_is_none() -> None:
    whole = job()
    whole.add()
    whole.process(drawn(2, 1, END, reason="stop"))
    *log, _ = whole.take_append().events
    heir = ActiveJob(claim(Request(prompt="x", n=1), log=tuple(log)), PROMPT, READY, lambda outcome: None)
    assert heir.result.cached_tokens == 0
