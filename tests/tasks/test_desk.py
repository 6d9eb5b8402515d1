"""The desk's decisions, one turn at a time, on a real Redis and without an engine process."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tasks.desk import Desk, EngineExit, Job, Release
from tasks.generation import Generation
from tasks.intake import Outcome
from tasks.job import Claim, JobStore, Message
from tasks.observe import Observer
from tasks.prompt import Prompt
from tasks.request import parse
from tasks.result import Result
from tasks.token_log import End, Error, Started, Token
from tasks.upkeep import Verdict
from tests.tasks.conftest import MakeStore
from tests.tasks.test_generation import END, TOKENIZER
from worker import contract
from worker.errors import Cancelled
from worker.log import EventLog
from worker.settings import Settings
from worker.text.detokenizer import Detokenizer

REQUEST = parse({"prompt": "x", "max_tokens": 9})
READY = contract.Ready("m", "qwen2", "cpu", 9, 64, 64, 8, 1, 1, 1)


class Scene:
    """A desk and what came out of it."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.published: list[Message] = []
        self.outcomes: list[tuple[str, Outcome]] = []
        self.lost = threading.Event()
        self.log = io.StringIO()
        observer = Observer(EventLog("json", "w", self.log), "w", "m")
        self.desk = Desk(Settings(device="cpu"), store, observer, self.published.append, self.lost.set)

    def begin(self, job_id: str) -> Generation:
        """Claim a job and hand it to the desk."""
        claim = self.store.claim([job_id])[0]
        assert isinstance(claim, Claim), claim
        prompt = Prompt([1, 2], contract.Sampling(max_tokens=9), lambda: Detokenizer(TOKENIZER))
        generation = Generation(claim, prompt, "m")
        self.desk.put(Job(generation, lambda outcome: self.outcomes.append((job_id, outcome))))
        return generation

    def say(self, generation: Generation, *ids: int, finish: contract.FinishReason | None = None) -> None:
        """What the engine draws for the job."""
        output = contract.TokenOutput(generation.request_id, 0, ids, finish)
        self.desk.put(contract.Outputs((output,)))


@pytest.fixture
def scene(make_store: MakeStore) -> Iterator[Scene]:
    scene = Scene(make_store("w"))
    scene.store.submit("a", REQUEST)
    scene.desk.put(READY)
    scene.desk.turn()
    yield scene


def test_a_job_runs_from_its_claim_to_its_result(scene: Scene) -> None:
    generation = scene.begin("a")
    scene.desk.turn()
    scene.say(generation, 1)
    scene.say(generation, 2, END, finish="stop")
    scene.desk.turn()
    ((job_id, result),) = scene.outcomes
    assert job_id == "a"
    assert isinstance(result, Result)
    assert result.text == "ab"
    assert scene.desk.num_jobs == 0
    assert scene.store.claim(["a"])[0] == "finished"


def test_what_several_steps_drew_is_one_event_of_each_job(scene: Scene) -> None:
    generation = scene.begin("a")
    scene.desk.turn()
    for token_id in (1, 2, 4):
        scene.say(generation, token_id)
    scene.desk.turn()
    scene.say(generation, 1)
    scene.desk.turn()
    tokens = [event for event in scene.store.events("a") if isinstance(event, Token)]
    assert tokens == [Token("ab ", 1, [1, 2, 4]), Token("a", 4, [1])]


def test_a_job_that_comes_between_two_outputs_leaves_them_one_event(scene: Scene) -> None:
    generation = scene.begin("a")
    scene.desk.turn()
    scene.store.submit("b", REQUEST)
    scene.say(generation, 1)
    scene.begin("b")
    scene.say(generation, 2)
    scene.desk.turn()
    assert [event for event in scene.store.events("a") if isinstance(event, Token)] == [Token("ab", 1, [1, 2])]
    assert [type(event) for event in scene.store.events("b")] == [Started]


def words(scene: Scene, job_id: str) -> list[Any]:
    """The types of its logged events, of tokens the ids."""
    return [event.ids if isinstance(event, Token) else type(event) for event in scene.store.events(job_id)]


def test_while_the_desk_rests_jobs_are_started_and_say_their_first_and_last_words(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[contract.Request] = []
    monkeypatch.setattr(scene.desk.engine, "send", sent.append)
    first = scene.begin("a")
    scene.store.submit("b", REQUEST)
    second = scene.begin("b")
    scene.say(first, 1)
    scene.say(second, 1)
    scene.desk.turn()
    scene.store.submit("c", REQUEST)
    scene.store.submit("d", REQUEST)
    scene.say(first, 2)
    scene.say(second, 2, END, finish="stop")
    third, fourth = scene.begin("c"), scene.begin("d")
    scene.say(third, 4)
    scene.desk._rest(0.05)
    assert [request.request_id for request in sent] == [each.request_id for each in (first, second, third, fourth)]
    assert words(scene, "a") == [Started, [1]], "its second token waits for the next turn"
    assert words(scene, "b") == [Started, [1], [2, END], End]
    assert words(scene, "c") == [Started, [4]]
    assert words(scene, "d") == []
    assert [job_id for job_id, _ in scene.outcomes] == ["b"]
    scene.say(third, 1)
    scene.desk._rest(0.05)
    scene.desk.turn()
    assert words(scene, "a") == [Started, [1], [2]]
    assert words(scene, "c") == [Started, [4], [1]]
    assert words(scene, "d") == [Started]


def test_a_job_that_starts_and_ends_while_the_desk_rests_says_all_of_it(scene: Scene) -> None:
    generation = scene.begin("a")
    scene.say(generation, 1, END, finish="stop")
    scene.desk._rest(0.05)
    scene.desk.turn()
    assert [type(event) for event in scene.store.events("a")] == [Started, Token, End]


def test_the_desk_rests_no_longer_when_something_rare_happens(scene: Scene) -> None:
    generation = scene.begin("a")
    scene.desk.turn()
    scene.say(generation, 1)
    scene.desk.put(Verdict("a", Cancelled("cancelled")))
    start = time.monotonic()
    scene.desk._rest(60)
    assert time.monotonic() - start < 30
    scene.desk.turn()
    assert [type(event) for event in scene.store.events("a")] == [Started, Token, Error]


def test_a_job_that_is_given_back_in_the_turn_of_its_last_output_is_forgotten_once(scene: Scene) -> None:
    generation = scene.begin("a")
    scene.desk.turn()
    released = threading.Event()
    scene.say(generation, 1)
    scene.desk.put(Release(released))
    scene.desk.put(Verdict("a", None))
    scene.desk.turn()
    assert released.is_set()
    assert scene.outcomes == [("a", None)]
    assert [message.job_id for message in scene.published] == ["a"]
    heir = scene.store.claim(["a"])[0]
    assert isinstance(heir, Claim)
    assert heir.log[-1].position.n == 1, "what was drawn before is kept"


def test_an_output_of_an_earlier_claim_does_not_reach_a_later_one(scene: Scene) -> None:
    earlier = scene.begin("a")
    scene.desk.turn()
    scene.store.release({"a": earlier.claim.epoch})  # as the reaper does when the lease ran out
    later = scene.begin("a")
    scene.say(earlier, 1)
    scene.say(later, 2, END, finish="stop")
    scene.desk.turn()
    assert [job_id for job_id, _ in scene.outcomes] == ["a", "a"]
    assert scene.outcomes[0][1] is None, "the earlier claim's message is done with"
    result = scene.outcomes[1][1]
    assert isinstance(result, Result)
    assert result.text == "b"


def test_a_job_that_somebody_else_has_claimed_is_dropped_at_its_next_output(
    scene: Scene, make_store: MakeStore
) -> None:
    generation = scene.begin("a")
    scene.desk.turn()
    scene.store.release({"a": generation.claim.epoch})
    assert isinstance(make_store("thief").claim(["a"])[0], Claim)
    scene.say(generation, 1)
    scene.desk.turn()
    assert scene.outcomes == [("a", None)]
    assert scene.desk.num_jobs == 0


def test_a_verdict_ends_a_job_with_its_error(scene: Scene) -> None:
    scene.begin("a")
    scene.desk.put(Verdict("a", Cancelled("cancelled")))
    scene.desk.put(Verdict("a", Cancelled("cancelled")))
    scene.desk.put(Verdict("nobody", Cancelled("cancelled")))
    scene.desk.turn()
    ((_, result),) = scene.outcomes
    assert isinstance(result, Result)
    assert result.state == "cancelled"


def test_an_engine_that_ends_before_it_was_ready_is_not_started_again(make_store: MakeStore) -> None:
    scene = Scene(make_store("w"))
    scene.desk.put(contract.Fatal("MODEL_LOAD_FAILED", "no such file"))
    scene.desk.put(EngineExit(1))
    scene.desk.turn()
    assert scene.desk.loaded.is_set()
    assert scene.desk.limits is None
    assert scene.desk.fatal is not None
    assert scene.desk.fatal.code == "MODEL_LOAD_FAILED"


def test_a_bug_in_the_desk_makes_the_worker_leave(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise KeyError("Kanarienvogel")

    monkeypatch.setattr(scene.desk, "turn", fail)
    monkeypatch.setattr(scene.desk.engine, "start", lambda: None)
    scene.desk.start()
    assert scene.lost.wait(5)
    last = json.loads(scene.log.getvalue().splitlines()[-1])
    assert (last["event"], last["cause"]) == ("error", "KeyError")
    assert "Kanarienvogel" not in scene.log.getvalue()
