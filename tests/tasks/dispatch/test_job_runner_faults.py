"""What the job runner makes of logs that are not as it left them (F07), and of keys that cannot be used (F15)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis
from kombu.exceptions import OperationalError

from orcd.errors import Cancelled
from orcd.events import End, Error, Started, Token
from orcd.request import parse
from orcd.result import Result
from orcd.store import schema
from orcd.store.claim import Claim
from orcd.store.enqueue import Message
from tasks.dispatch.active_job import Termination
from tasks.dispatch.delivery import Fenced
from tests.orcd.job_record import submit
from tests.orcd.job_writer import MakeStore
from tests.tasks.dispatch.runner_scene import READY, REQUEST, RunnerScene
from tests.tasks.dispatch.small_tokenizer import END
from worker import contract


@pytest.fixture
def scene(make_store: MakeStore) -> Iterator[RunnerScene]:
    scene = RunnerScene(make_store("w"))
    submit(scene.store, "a", REQUEST)
    submit(scene.store, "b", REQUEST)
    scene.runner.put(READY)
    scene.runner.run_batch()
    yield scene


def test_a_log_that_redis_has_forgotten_a_part_of_is_given_back_and_gone_on_with_from_there(
    scene: RunnerScene, connection: redis.Redis
) -> None:
    scene.listen("a")
    job = scene.begin("a")
    scene.runner.run_batch()
    scene.say(job, 1)
    scene.runner.run_batch()
    snapshot: Any = connection.dump(schema.log_key("a"))
    scene.say(job, 2)
    scene.runner.run_batch()
    connection.restore(schema.log_key("a"), 60_000, snapshot, replace=True)
    scene.say(job, 4)
    scene.runner.run_batch()
    assert scene.outcomes == [("a", None)]
    assert [message.job_id for message in scene.published] == ["a"]
    assert scene.runner.jobs() == []
    assert [event.ids for event in scene.store.events("a") if isinstance(event, Token)] == [[1]]

    heir = scene.begin("a")
    scene.runner.run_batch()
    assert heir.claim.attempt == 1, "nobody failed"
    add = heir.add()
    assert add is not None
    assert add.choices[0].output_ids == (1,)
    for ids in ((2,), (4, END)):
        scene.say(heir, *ids, finish="stop" if END in ids else None)
    scene.runner.run_batch()
    events = scene.store.events("a")
    assert [type(event) for event in events] == [Started, Token, Started, Token, End]
    assert isinstance(scene.outcomes[-1][1], Result)
    assert scene.outcomes[-1][1].text == "ab "


def test_an_owner_that_redis_has_forgotten_drops_the_job(
    scene: RunnerScene, connection: redis.Redis, make_store: MakeStore
) -> None:
    """The epoch is handed out again, but not the token."""
    job = scene.begin("a")
    scene.runner.run_batch()
    connection.hset(schema.job_key("a"), mapping={"state": "queued", "epoch": job.claim.lease.epoch - 1})
    connection.zrem(schema.RUNNING, "a")
    other = make_store("other").claim(["a"])[0]
    assert isinstance(other, Claim)
    assert other.lease.epoch == job.claim.lease.epoch
    scene.say(job, 1)
    scene.runner.run_batch()
    assert scene.outcomes == [("a", Fenced())]
    assert [type(event) for event in scene.store.events("a")] == [Started], "nothing of it was written"


@pytest.mark.parametrize("key", ["log", "job"])
def test_a_job_whose_key_is_of_another_type_ends_alone(scene: RunnerScene, connection: redis.Redis, key: str) -> None:
    bad, good = scene.begin("a"), scene.begin("b")
    scene.runner.run_batch()
    name = schema.log_key("a") if key == "log" else schema.job_key("a")
    connection.delete(name)
    connection.rpush(name, "of", "another", "type")
    for job in (bad, good):
        scene.say(job, 1, END, finish="stop")
    scene.runner.run_batch()
    outcomes = dict(scene.outcomes)
    assert isinstance(outcomes["b"], Result) and outcomes["b"].text == "a"
    assert isinstance(outcomes["a"], Result)
    assert outcomes["a"].error is not None
    assert (outcomes["a"].error.code, outcomes["a"].choices) == ("LOG_DAMAGED", []), "no answer that nobody can read"
    ended = [event for event in scene.log_events() if event["event"] == "execute_end"]
    assert {(event["job_id"], event["state"], event.get("code")) for event in ended} == {
        ("a", "failed", "LOG_DAMAGED"),
        ("b", "succeeded", None),
    }
    if key == "log":  # else there is no record any more that could say so
        (event,) = scene.store.events("a")
        assert isinstance(event, Error) and event.code == "LOG_DAMAGED"
        assert connection.hget(schema.job_key("a"), "state") == b"failed"


def test_redis_errors_while_a_job_is_given_back_or_ended_are_survived(
    scene: RunnerScene, connection: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: Any) -> Any:
        raise redis.ConnectionError("away")

    lost, damaged = scene.begin("a"), scene.begin("b")
    scene.runner.run_batch()
    connection.xtrim(schema.log_key("a"), maxlen=0)
    connection.delete(schema.log_key("b"))
    connection.set(schema.log_key("b"), "of another type")
    for name in ("release", "end_damaged"):
        monkeypatch.setattr(scene.store, name, fail)
    scene.say(lost, 1)
    scene.say(damaged, 1)
    scene.runner.run_batch()
    assert {job_id for job_id, _ in scene.outcomes} == {"a", "b"}
    assert {event.get("doing") for event in scene.log_events()} >= {"release", "end"}
    assert scene.runner.jobs() == []


def test_a_publisher_that_fails_keeps_no_job_from_being_given_back(
    scene: RunnerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Message] = []

    def fail(message: Message) -> None:
        tried.append(message)
        raise OSError("the broker is away")

    for job_id in ("a", "b"):
        scene.begin(job_id)
    scene.runner.run_batch()
    monkeypatch.setattr(scene.runner, "_publish", fail)
    scene.release()
    assert len(tried) == 1, "it is not there for the others either, and a worker that leaves has little time"
    (said,) = [event for event in scene.log_events() if event.get("doing") == "publish"]
    assert said["jobs"] == 2
    assert scene.outcomes == [("a", None), ("b", None)]
    assert [scene.store.claim([job_id])[0] != "busy" for job_id in ("a", "b")] == [True, True]


def test_a_job_whose_message_cannot_be_sent_keeps_no_other_waiting_when_all_are_given_back(
    scene: RunnerScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        submit(scene.store, f"job-{number}", REQUEST)
        scene.begin(f"job-{number}")
    scene.runner.run_batch()
    given_back = scene.store.release
    messages: list[Message] = []

    def release(leases: Any) -> list[Message]:
        queues = ["orcd.refused", "orcd", "orcd.refused", "orcd", "orcd"]
        messages.extend(replace(each, queue=queue) for each, queue in zip(given_back(leases), queues, strict=True))
        return messages

    def publish(message: Message) -> None:
        if message.queue == "orcd.refused":
            raise OperationalError from redis.exceptions.NoPermissionError("no permission")
        if message is messages[1]:
            raise ValueError("headers that cannot be sent")
        scene.published.append(message)

    monkeypatch.setattr(scene.store, "release", release)
    monkeypatch.setattr(scene.runner, "_publish", publish)
    scene.release()
    assert scene.published == messages[3:]
    (said,) = [event for event in scene.log_events() if event.get("doing") == "publish"]
    assert (said["level"], said["cause"], said["jobs"]) == ("warning", "OperationalError", 3)


def test_what_concerns_an_earlier_claim_leaves_a_later_one_alone(scene: RunnerScene) -> None:
    earlier = scene.begin("a")
    scene.runner.run_batch()
    scene.store.release({"a": earlier.claim.lease})
    later = scene.begin("a")
    for error in (None, Cancelled("cancelled")):
        scene.runner.put(Termination("a", error, earlier.claim.lease))
    scene.runner.run_batch()
    assert scene.runner.jobs() == [later]
    assert not later.ended
    scene.runner.put(Termination("a", Cancelled("cancelled"), later.claim.lease))
    scene.runner.run_batch()
    assert later.ended


def test_the_lease_of_a_job_is_dropped_with_it(scene: RunnerScene, monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[tuple[str, Any]] = []
    monkeypatch.setattr(scene.runner.leases, "drop", lambda *what: dropped.append(what))
    job = scene.begin("a")
    scene.runner.run_batch()
    assert dropped == []
    scene.say(job, END, finish="stop")
    scene.runner.run_batch()
    assert dropped == [("a", job.claim.lease)]


@pytest.mark.parametrize("ended_by", ["a wish to cancel that an append finds", "the engine"])
def test_a_job_ends_behind_the_tokens_of_all_its_choices(
    scene: RunnerScene, connection: redis.Redis, ended_by: str
) -> None:
    scene.hold_quiet()
    submit(scene.store, "c", parse({"prompt": "x", "n": 2, "max_tokens": 9}))
    job = scene.begin("c")
    scene.runner.run_batch()
    scene.say(job, 1)
    scene.runner.run_batch()
    scene.say(job, 2, choice=1)
    scene.runner.run_batch()  # which nobody listens to
    if ended_by == "the engine":
        scene.runner.put(
            contract.Outputs((contract.TokenOutput(job.request_id, 0, (), "error", error_message="full"),))
        )
    else:
        connection.hset(schema.job_key("c"), "cancel", 1)
        scene.say(job, 4, END, finish="stop")
    scene.runner.run_batch()
    *events, error = scene.store.events("c")
    assert isinstance(error, Error)
    assert [event.ids for event in events if isinstance(event, Token) and event.choice == 1] == [[2]]
