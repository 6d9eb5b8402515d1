"""The job runner's decisions, one batch at a time, on a real Redis and without an engine process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from orcd.errors import Cancelled
from orcd.events import End, Error, Started, Token
from orcd.request import parse
from orcd.result import Result
from orcd.store.claim import Claim
from tasks.dispatch.active_job import Termination
from tasks.dispatch.delivery import Fenced
from tasks.dispatch.engine.engine_process import EngineExit
from tasks.dispatch.job_runner import Release
from tests.conftest import wait_until
from tests.orcd.job_record import submit
from tests.orcd.job_writer import MakeStore
from tests.tasks.dispatch.runner_scene import READY, REQUEST, RunnerScene
from tests.tasks.dispatch.small_tokenizer import END
from worker import contract


@pytest.fixture
def scene(make_store: MakeStore) -> Iterator[RunnerScene]:
    scene = RunnerScene(make_store("w"))
    submit(scene.store, "a", REQUEST)
    scene.runner.put(READY)
    scene.runner.run_batch()
    yield scene


def test_a_job_runs_from_its_claim_to_its_result(scene: RunnerScene) -> None:
    job = scene.begin("a")
    scene.runner.run_batch()
    scene.say(job, 1)
    scene.say(job, 2, END, finish="stop")
    scene.runner.run_batch()
    ((job_id, result),) = scene.outcomes
    assert job_id == "a"
    assert isinstance(result, Result)
    assert result.text == "ab"
    assert scene.runner.jobs() == []
    assert scene.store.claim(["a"])[0] == "finished"


def test_what_several_steps_drew_is_one_event_of_each_job(scene: RunnerScene) -> None:
    scene.listen("a")
    job = scene.begin("a")
    scene.runner.run_batch()
    for token_id in (1, 2, 4):
        scene.say(job, token_id)
    scene.runner.run_batch()
    scene.say(job, 1)
    scene.runner.run_batch()
    tokens = [event for event in scene.store.events("a") if isinstance(event, Token)]
    assert tokens == [Token("ab ", 1, [1, 2, 4]), Token("a", 4, [1])]


def test_tokens_of_a_job_that_nobody_listens_to_share_an_event_and_its_first_and_last_ones_do_not_wait(
    scene: RunnerScene,
) -> None:
    scene.hold_quiet()
    submit(scene.store, "b", parse({"prompt": "x", "max_tokens": 9, "stop": "zz"}))
    submit(scene.store, "c", REQUEST)
    scene.listen("c")
    jobs = [scene.begin(job_id) for job_id in ("a", "b", "c")]
    scene.runner.run_batch()
    for token_id in (1, 2, 4):
        for job in jobs:
            scene.say(job, token_id)
        scene.runner.run_batch()
    assert words(scene, "a") == [Started, [1]]
    assert words(scene, "b") == [Started, [1], [2], [4]], "its stop string would end the work"
    assert words(scene, "c") == [Started, [1], [2], [4]]
    scene.say(jobs[0], 1, END, finish="stop")
    scene.runner.run_batch()
    assert words(scene, "a") == [Started, [1], [2, 4, 1, END], End]


def test_who_begins_to_listen_gets_each_token_when_it_comes(scene: RunnerScene) -> None:
    job = scene.begin("a")
    for token_id in (1, 2):
        scene.say(job, token_id)
        scene.runner.run_batch()
    wait_until(lambda: (scene.runner.run_batch(), words(scene, "a"))[1] == [Started, [1], [2]])
    scene.listen("a")
    wait_until(lambda: (scene.say(job, 4), scene.runner.run_batch(), len(words(scene, "a")) > 3)[-1])
    scene.hold_quiet()
    known = words(scene, "a")
    for token_id in (1, 2):
        scene.say(job, token_id)
        scene.runner.run_batch()
    assert words(scene, "a") == [*known, [1], [2]]


def test_a_job_that_comes_between_two_outputs_leaves_them_one_event(scene: RunnerScene) -> None:
    job = scene.begin("a")
    scene.runner.run_batch()
    submit(scene.store, "b", REQUEST)
    scene.say(job, 1)
    scene.begin("b")
    scene.say(job, 2)
    scene.runner.run_batch()
    assert [event for event in scene.store.events("a") if isinstance(event, Token)] == [Token("ab", 1, [1, 2])]
    assert [type(event) for event in scene.store.events("b")] == [Started]


def words(scene: RunnerScene, job_id: str) -> list[Any]:
    """The types of its logged events, of tokens the ids."""
    return [event.ids if isinstance(event, Token) else type(event) for event in scene.store.events(job_id)]


def test_while_it_is_throttled_jobs_are_started_and_their_first_and_final_outputs_written(
    scene: RunnerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[contract.Request] = []
    monkeypatch.setattr(scene.runner.engine.process, "send", sent.append)
    scene.listen("a")
    scene.listen("c")
    first = scene.begin("a")
    submit(scene.store, "b", REQUEST)
    second = scene.begin("b")
    scene.say(first, 1)
    scene.say(second, 1)
    scene.runner.run_batch()
    submit(scene.store, "c", REQUEST)
    submit(scene.store, "d", REQUEST)
    scene.say(first, 2)
    scene.say(second, 2, END, finish="stop")
    third, fourth = scene.begin("c"), scene.begin("d")
    scene.say(third, 4)
    scene.throttle_until(lambda: scene.outcomes and words(scene, "c"))
    assert [request.request_id for request in sent] == [each.request_id for each in (first, second, third, fourth)]
    assert words(scene, "a") == [Started, [1]], "its second token waits for the next batch"
    assert words(scene, "b") == [Started, [1], [2, END], End]
    assert words(scene, "c") == [Started, [4]]
    assert words(scene, "d") == []
    assert [job_id for job_id, _ in scene.outcomes] == ["b"]
    scene.say(third, 1)
    scene.runner._throttle(0.05)
    scene.runner.run_batch()
    assert words(scene, "a") == [Started, [1], [2]]
    assert words(scene, "c") == [Started, [4], [1]]
    assert words(scene, "d") == [Started]


def test_a_job_that_starts_and_ends_while_it_is_throttled_says_all_of_it(scene: RunnerScene) -> None:
    job = scene.begin("a")
    scene.say(job, 1, END, finish="stop")
    scene.throttle_until(lambda: scene.outcomes)
    scene.runner.run_batch()
    assert [type(event) for event in scene.store.events("a")] == [Started, Token, End]


def test_choices_that_end_together_while_it_is_throttled_end_their_job_once(scene: RunnerScene) -> None:
    """F03: two outputs of one job in one frame ended the worker."""
    submit(scene.store, "b", parse({"prompt": "x", "n": 2, "max_tokens": 9}))
    job = scene.begin("b")
    scene.runner.run_batch()
    outputs = [contract.TokenOutput(job.request_id, choice, (1, END), "stop") for choice in (0, 1)]
    scene.runner.put(contract.Outputs(tuple(outputs)))
    scene.throttle_until(lambda: scene.outcomes)
    ((job_id, result),) = scene.outcomes
    assert job_id == "b"
    assert isinstance(result, Result)
    assert [choice.text for choice in result.choices] == ["a", "a"]


def test_it_is_throttled_no_longer_when_something_rare_happens(scene: RunnerScene) -> None:
    job = scene.begin("a")
    scene.runner.run_batch()
    scene.say(job, 1)
    scene.runner.put(Termination("a", Cancelled("cancelled")))
    start = time.monotonic()
    scene.runner._throttle(60)
    assert time.monotonic() - start < 30
    scene.runner.run_batch()
    assert [type(event) for event in scene.store.events("a")] == [Started, Token, Error]


def test_a_job_that_is_given_back_in_the_batch_of_its_last_output_is_forgotten_once(scene: RunnerScene) -> None:
    job = scene.begin("a")
    scene.runner.run_batch()
    released = threading.Event()
    scene.say(job, 1)
    scene.runner.put(Release(released))
    scene.runner.put(Termination("a", None))
    scene.runner.run_batch()
    assert released.is_set()
    assert scene.outcomes == [("a", None)]
    assert [message.job_id for message in scene.published] == ["a"]
    heir = scene.store.claim(["a"])[0]
    assert isinstance(heir, Claim)
    assert heir.log[-1].position.n == 1, "what was drawn before is kept"


def test_an_output_of_an_earlier_claim_does_not_reach_a_later_one(scene: RunnerScene) -> None:
    earlier = scene.begin("a")
    scene.runner.run_batch()
    scene.store.release({"a": earlier.claim.lease})  # as the reaper does when the lease ran out
    later = scene.begin("a")
    scene.say(earlier, 1)
    scene.say(later, 2, END, finish="stop")
    scene.runner.run_batch()
    assert [job_id for job_id, _ in scene.outcomes] == ["a", "a"]
    assert isinstance(scene.outcomes[0][1], Fenced)
    result = scene.outcomes[1][1]
    assert isinstance(result, Result)
    assert result.text == "b"


def test_a_job_that_somebody_else_has_claimed_is_dropped_at_its_next_output(
    scene: RunnerScene, make_store: MakeStore
) -> None:
    job = scene.begin("a")
    scene.runner.run_batch()
    scene.store.release({"a": job.claim.lease})
    assert isinstance(make_store("thief").claim(["a"])[0], Claim)
    scene.say(job, 1)
    scene.runner.run_batch()
    assert scene.outcomes == [("a", Fenced())]
    assert scene.runner.jobs() == []


def test_a_termination_ends_a_job_with_its_error(scene: RunnerScene) -> None:
    scene.begin("a")
    scene.runner.put(Termination("a", Cancelled("cancelled")))
    scene.runner.put(Termination("a", Cancelled("cancelled")))
    scene.runner.put(Termination("nobody", Cancelled("cancelled")))
    scene.runner.run_batch()
    ((_, result),) = scene.outcomes
    assert isinstance(result, Result)
    assert result.state == "cancelled"


def test_an_engine_that_ends_before_it_was_ready_is_not_started_again(make_store: MakeStore) -> None:
    scene = RunnerScene(make_store("w"))
    scene.runner.put(contract.Fatal("MODEL_LOAD_FAILED", "no such file"))
    scene.runner.put(EngineExit(1, is_fault=True))
    scene.runner.run_batch()
    assert scene.runner.engine.loaded.is_set()
    assert scene.runner.engine.limits is None
    assert scene.runner.engine.fatal is not None
    assert scene.runner.engine.fatal.code == "MODEL_LOAD_FAILED"


def test_a_bug_in_the_job_runner_is_told_and_its_jobs_are_given_back(
    scene: RunnerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(scene.store, "b", REQUEST)
    scene.begin("a")
    scene.runner.run_batch()
    scene.begin("b")  # which nobody looks at any more

    def fail() -> None:
        raise KeyError("Kanarienvogel")

    monkeypatch.setattr(scene.runner, "run_batch", fail)
    monkeypatch.setattr(scene.runner.engine.process, "start", lambda _: None)
    monkeypatch.setattr(scene.runner.engine.process, "stop", lambda *_: None)
    scene.runner.start()
    name, error = scene.deaths.get(timeout=60)
    assert (name, type(error)) == ("job runner", KeyError)
    wait_until(lambda: not scene.runner.is_alive)
    scene.runner.abandon()
    assert scene.outcomes == [("a", None), ("b", None)]
    assert sorted(message.job_id for message in scene.published) == ["a", "b"]
    scene.runner.stop(5, 5)
