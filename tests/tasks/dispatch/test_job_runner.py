"""The job runner's decisions, one batch at a time, on a real Redis and without an engine process."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from orcd.errors import Cancelled
from orcd.events import End, Error, Started, Token
from orcd.request import parse
from orcd.result import Result
from orcd.store.job_store import Claim, JobStore, Message
from tasks.dispatch.active_job import ActiveJob
from tasks.dispatch.delivery import Outcome
from tasks.dispatch.engine_supervisor import EngineExit
from tasks.dispatch.job_runner import JobRunner, Release
from tasks.dispatch.maintenance import Termination
from tasks.dispatch.prompt_encoder import Prompt
from tasks.observe.observer import Observer
from tests.orcd.job_writer import MakeStore
from tests.tasks.dispatch.small_tokenizer import END, TOKENIZER
from worker import contract
from worker.log import EventLog
from worker.settings import Settings
from worker.text.detokenizer import Detokenizer

REQUEST = parse({"prompt": "x", "max_tokens": 9})
READY = contract.Ready("m", "qwen2", "cpu", 9, 64, 64, 8, 1, 1, 1)


class Scene:
    """A job runner and what came out of it."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.published: list[Message] = []
        self.outcomes: list[tuple[str, Outcome]] = []
        self.lost = threading.Event()
        self.log = io.StringIO()
        observer = Observer(EventLog("json", "w", self.log), "w", "m")
        self.runner = JobRunner(Settings(device="cpu"), store, observer, self.published.append, self.lost.set)

    def begin(self, job_id: str) -> ActiveJob:
        """Claim a job and hand it to the job runner."""
        claim = self.store.claim([job_id])[0]
        assert isinstance(claim, Claim), claim
        prompt = Prompt([1, 2], contract.Sampling(max_tokens=9), lambda: Detokenizer(TOKENIZER))
        job = ActiveJob(claim, prompt, "m", lambda outcome: self.outcomes.append((job_id, outcome)))
        self.runner.put(job)
        return job

    def say(self, job: ActiveJob, *ids: int, finish: contract.FinishReason | None = None) -> None:
        """What the engine draws for the job."""
        output = contract.TokenOutput(job.request_id, 0, ids, finish)
        self.runner.put(contract.Outputs((output,)))


@pytest.fixture
def scene(make_store: MakeStore) -> Iterator[Scene]:
    scene = Scene(make_store("w"))
    scene.store.submit("a", REQUEST)
    scene.runner.put(READY)
    scene.runner.run_batch()
    yield scene


def test_a_job_runs_from_its_claim_to_its_result(scene: Scene) -> None:
    job = scene.begin("a")
    scene.runner.run_batch()
    scene.say(job, 1)
    scene.say(job, 2, END, finish="stop")
    scene.runner.run_batch()
    ((job_id, result),) = scene.outcomes
    assert job_id == "a"
    assert isinstance(result, Result)
    assert result.text == "ab"
    assert scene.runner.num_jobs == 0
    assert scene.store.claim(["a"])[0] == "finished"


def test_what_several_steps_drew_is_one_event_of_each_job(scene: Scene) -> None:
    job = scene.begin("a")
    scene.runner.run_batch()
    for token_id in (1, 2, 4):
        scene.say(job, token_id)
    scene.runner.run_batch()
    scene.say(job, 1)
    scene.runner.run_batch()
    tokens = [event for event in scene.store.events("a") if isinstance(event, Token)]
    assert tokens == [Token("ab ", 1, [1, 2, 4]), Token("a", 4, [1])]


def test_a_job_that_comes_between_two_outputs_leaves_them_one_event(scene: Scene) -> None:
    job = scene.begin("a")
    scene.runner.run_batch()
    scene.store.submit("b", REQUEST)
    scene.say(job, 1)
    scene.begin("b")
    scene.say(job, 2)
    scene.runner.run_batch()
    assert [event for event in scene.store.events("a") if isinstance(event, Token)] == [Token("ab", 1, [1, 2])]
    assert [type(event) for event in scene.store.events("b")] == [Started]


def words(scene: Scene, job_id: str) -> list[Any]:
    """The types of its logged events, of tokens the ids."""
    return [event.ids if isinstance(event, Token) else type(event) for event in scene.store.events(job_id)]


def test_while_it_is_throttled_jobs_are_started_and_their_first_and_final_outputs_written(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[contract.Request] = []
    monkeypatch.setattr(scene.runner.engine.process, "send", sent.append)
    first = scene.begin("a")
    scene.store.submit("b", REQUEST)
    second = scene.begin("b")
    scene.say(first, 1)
    scene.say(second, 1)
    scene.runner.run_batch()
    scene.store.submit("c", REQUEST)
    scene.store.submit("d", REQUEST)
    scene.say(first, 2)
    scene.say(second, 2, END, finish="stop")
    third, fourth = scene.begin("c"), scene.begin("d")
    scene.say(third, 4)
    scene.runner._throttle(0.05)
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


def test_a_job_that_starts_and_ends_while_it_is_throttled_says_all_of_it(scene: Scene) -> None:
    job = scene.begin("a")
    scene.say(job, 1, END, finish="stop")
    scene.runner._throttle(0.05)
    scene.runner.run_batch()
    assert [type(event) for event in scene.store.events("a")] == [Started, Token, End]


def test_choices_that_end_together_while_it_is_throttled_end_their_job_once(scene: Scene) -> None:
    scene.store.submit("b", parse({"prompt": "x", "n": 2, "max_tokens": 9}))
    job = scene.begin("b")
    scene.runner.run_batch()
    outputs = [contract.TokenOutput(job.request_id, choice, (1, END), "stop") for choice in (0, 1)]
    scene.runner.put(contract.Outputs(tuple(outputs)))
    scene.runner._throttle(0.05)
    ((job_id, result),) = scene.outcomes
    assert job_id == "b"
    assert isinstance(result, Result)
    assert [choice.text for choice in result.choices] == ["a", "a"]


def test_it_is_throttled_no_longer_when_something_rare_happens(scene: Scene) -> None:
    job = scene.begin("a")
    scene.runner.run_batch()
    scene.say(job, 1)
    scene.runner.put(Termination("a", Cancelled("cancelled")))
    start = time.monotonic()
    scene.runner._throttle(60)
    assert time.monotonic() - start < 30
    scene.runner.run_batch()
    assert [type(event) for event in scene.store.events("a")] == [Started, Token, Error]


def test_a_job_that_is_given_back_in_the_batch_of_its_last_output_is_forgotten_once(scene: Scene) -> None:
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


def test_an_output_of_an_earlier_claim_does_not_reach_a_later_one(scene: Scene) -> None:
    earlier = scene.begin("a")
    scene.runner.run_batch()
    scene.store.release({"a": earlier.claim.epoch})  # as the reaper does when the lease ran out
    later = scene.begin("a")
    scene.say(earlier, 1)
    scene.say(later, 2, END, finish="stop")
    scene.runner.run_batch()
    assert [job_id for job_id, _ in scene.outcomes] == ["a", "a"]
    assert scene.outcomes[0][1] is None, "the earlier claim's message is done with"
    result = scene.outcomes[1][1]
    assert isinstance(result, Result)
    assert result.text == "b"


def test_a_job_that_somebody_else_has_claimed_is_dropped_at_its_next_output(
    scene: Scene, make_store: MakeStore
) -> None:
    job = scene.begin("a")
    scene.runner.run_batch()
    scene.store.release({"a": job.claim.epoch})
    assert isinstance(make_store("thief").claim(["a"])[0], Claim)
    scene.say(job, 1)
    scene.runner.run_batch()
    assert scene.outcomes == [("a", None)]
    assert scene.runner.num_jobs == 0


def test_a_termination_ends_a_job_with_its_error(scene: Scene) -> None:
    scene.begin("a")
    scene.runner.put(Termination("a", Cancelled("cancelled")))
    scene.runner.put(Termination("a", Cancelled("cancelled")))
    scene.runner.put(Termination("nobody", Cancelled("cancelled")))
    scene.runner.run_batch()
    ((_, result),) = scene.outcomes
    assert isinstance(result, Result)
    assert result.state == "cancelled"


def test_an_engine_that_ends_before_it_was_ready_is_not_started_again(make_store: MakeStore) -> None:
    scene = Scene(make_store("w"))
    scene.runner.put(contract.Fatal("MODEL_LOAD_FAILED", "no such file"))
    scene.runner.put(EngineExit(1))
    scene.runner.run_batch()
    assert scene.runner.engine.loaded.is_set()
    assert scene.runner.engine.limits is None
    assert scene.runner.engine.fatal is not None
    assert scene.runner.engine.fatal.code == "MODEL_LOAD_FAILED"


def test_a_bug_in_the_job_runner_makes_the_worker_leave(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyError("Kanarienvogel")

    monkeypatch.setattr(scene.runner, "run_batch", fail)
    monkeypatch.setattr(scene.runner.engine.process, "start", lambda: None)
    scene.runner.start()
    assert scene.lost.wait(5)
    last = json.loads(scene.log.getvalue().splitlines()[-1])
    assert (last["event"], last["cause"]) == ("error", "KeyError")
    assert "Kanarienvogel" not in scene.log.getvalue()
