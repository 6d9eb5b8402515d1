"""Messages that come under the id of one that is at work: another canvas, another request, or only wrong."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest

from orcd.client import Client
from orcd.errors import Conflict, InvalidRequest
from orcd.events import Error
from orcd.result import Result
from tasks.dispatch.delivery import Repeated, Unknown
from tasks.finisher import NUM_THREADS
from tests.conftest import wait_until
from tests.tasks.celery_ext.pool_scene import Scene

SHORT = {"prompt": "old pond", "max_tokens": 8}


def test_what_follows_a_message_that_was_terminated_is_revoked_too(scene: Scene) -> None:
    cancelled = Repeated(Result("t", "cancelled", error=Error("CANCELLED", "revoked", False)))
    message = scene.deliver(SHORT, root_id="r", ignore_result=True)
    scene.deliver(SHORT, embed={"chain": [{"task": "second"}]}, root_id="r", ignore_result=True)
    wait_until(lambda: scene.dispatcher.deliveries)
    message.terminate()
    scene.dispatcher.answer(cancelled)
    wait_until(lambda: len(scene.dispatcher.deliveries) == 2)
    scene.dispatcher.answer(cancelled)
    wait_until(lambda: len(scene.answers) == 2)
    assert [info.exception.exc.args for _, info, _ in scene.answers] == [("terminated",), ("terminated",)]


def test_so_is_what_was_one_and_has_been_begun(scene: Scene) -> None:
    """Celery's reference to it led to the message before, which was gone: it ended as failed."""
    cancelled = Repeated(Result("t", "cancelled", error=Error("CANCELLED", "revoked", False)))
    scene.deliver(SHORT, root_id="r", ignore_result=True)
    follower = weakref.ref(scene.deliver(SHORT, embed={"chain": [{"task": "second"}]}, root_id="r", ignore_result=True))
    wait_until(lambda: scene.dispatcher.deliveries)
    scene.dispatcher.answer(InvalidRequest("an outcome"))
    wait_until(lambda: len(scene.dispatcher.deliveries) == 2)
    gc.collect()
    message = follower()
    assert message is not None
    message.terminate()
    scene.dispatcher.answer(cancelled)
    wait_until(lambda: len(scene.answers) == 2)
    assert scene.answers[1][1].exception.exc.args == ("terminated",)


@pytest.mark.parametrize("by", ["the first", "the second"])
def test_both_are_revoked_whichever_celery_terminates(scene: Scene, by: str) -> None:
    cancelled = Repeated(Result("t", "cancelled", error=Error("CANCELLED", "revoked", False)))
    first = scene.deliver(SHORT, root_id="r", ignore_result=True)
    second = scene.deliver(SHORT, embed={"chain": [{"task": "second"}]}, root_id="r", ignore_result=True)
    wait_until(lambda: scene.dispatcher.deliveries)
    (first if by == "the first" else second).terminate()
    scene.dispatcher.answer(cancelled)
    wait_until(lambda: len(scene.dispatcher.deliveries) == 2)
    scene.dispatcher.answer(cancelled)
    wait_until(lambda: len(scene.answers) == 2)
    assert [info.exception.exc.args for _, info, _ in scene.answers] == [("terminated",), ("terminated",)]


def test_a_message_of_a_known_id_with_another_request_is_answered_on_its_own(scene: Scene) -> None:
    """It was given the answer to the first one, as if it were a repetition."""
    scene.deliver(SHORT)
    scene.deliver(SHORT | {"prompt": "a frog"})
    wait_until(lambda: len(scene.dispatcher.deliveries) == 2)
    first, second = sorted(scene.dispatcher.deliveries, key=lambda each: each.request.prompt, reverse=True)
    assert (first.request.prompt, second.request.prompt) == ("old pond", "a frog")
    second.done(Conflict("job t: the id belongs to another request"))
    assert isinstance(scene.answered(), Conflict)
    assert scene.app.AsyncResult("t").state == "FAILURE"
    scene.deliver(SHORT)  # a repetition of the first one
    first.done(Result("t", "succeeded"))
    wait_until(lambda: len(scene.answers) == 3)
    assert scene.app.AsyncResult("t").state == "SUCCESS"


@pytest.mark.parametrize("headers", [{}, {"timelimit": [9, None]}])
def test_so_is_one_with_another_request_than_the_job_that_is_only_named(
    scene: Scene, client: Client, headers: dict[str, Any]
) -> None:
    client.submit(**SHORT, job_id="t")
    scene.deliver({"job_id": "t"})
    scene.deliver(SHORT | {"prompt": "a frog"}, **headers)
    wait_until(lambda: len(scene.dispatcher.deliveries) == 2)
    named, other = scene.dispatcher.deliveries
    assert (named.request, other.request.prompt) == (None, "a frog")
    other.done(Conflict("job t: the id belongs to another request"))
    assert isinstance(scene.answered(), Conflict)
    named.done(Result("t", "succeeded"))
    wait_until(lambda: len(scene.answers) == 2)
    assert scene.app.AsyncResult("t").state == "SUCCESS"


def test_the_request_of_a_job_that_is_only_named_is_kept_for_a_redis_that_forgets_it(
    scene: Scene, client: Client
) -> None:
    client.submit(**SHORT, job_id="t")
    scene.deliver({"job_id": "t"})
    scene.deliver(SHORT)
    scene.settle()
    scene.dispatcher.answer(Unknown())
    wait_until(lambda: len(scene.dispatcher.deliveries) == 2)
    assert scene.dispatcher.deliveries[1].request is not None
    scene.dispatcher.answer(Result("t", "succeeded"))
    wait_until(lambda: len(scene.answers) == 2)
    assert scene.app.AsyncResult("t").state == "SUCCESS"


def test_a_right_message_is_not_given_the_error_of_a_wrong_one_of_its_id(scene: Scene) -> None:
    may_go_on, held = threading.Event(), threading.Barrier(NUM_THREADS + 1)
    for _ in range(NUM_THREADS):
        scene.pool._finisher.submit(lambda: (held.wait(60), may_go_on.wait(60)))
    held.wait(60)
    scene.deliver(SHORT | {"temperature": 99})
    scene.deliver(SHORT)
    may_go_on.set()
    wait_until(lambda: scene.dispatcher.deliveries)
    scene.dispatcher.answer(Result("t", "succeeded"))
    wait_until(lambda: len(scene.answers) == 2)
    assert scene.app.AsyncResult("t").state == "SUCCESS"


def test_a_message_that_has_expired_ends_no_job_of_another_request(scene: Scene, client: Client) -> None:
    client.submit(**SHORT, job_id="t")
    scene.deliver(SHORT | {"prompt": "a frog"}, revoked="expired")
    wait_until(lambda: scene.dispatcher.deliveries)
    assert client.status("t").state == "queued"
