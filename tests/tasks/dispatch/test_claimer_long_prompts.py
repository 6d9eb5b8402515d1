"""F16: jobs whose prompts take long to encode hold up nobody behind them, and are given back when the worker leaves."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import redis

from orcd.errors import Cancelled, ContextLengthExceeded, OrcdError
from orcd.request import Request, parse
from orcd.store import schema
from orcd.store.job_store import JobStore
from tasks.dispatch.long_prompts import MAX_WAITING
from tasks.dispatch.prompt_encoder import Lane, PromptEncoder, TakesLong
from tests.orcd.job_record import submit
from tests.orcd.job_writer import MakeStore
from tests.tasks.dispatch.byte_model import READY, TEMPLATE, TOKENIZER
from tests.tasks.dispatch.claimer_scene import REQUEST, ClaimerScene, error_of
from worker.text.chat_template import ChatTemplate

LONG = parse({"prompt": "long", "seed": 1})


class Encoder(PromptEncoder):
    """Takes long for prompts that begin with "long" or "grammar", until the test lets each kind go on."""

    def __init__(self) -> None:
        super().__init__(TOKENIZER, ChatTemplate(TEMPLATE))
        self.began = threading.Semaphore(0)
        self.going_on = threading.Semaphore(0)
        self.checking = threading.Semaphore(0)
        self.was_interrupted = False

    def encode(self, request: Request, ready: Any) -> Any:
        if (request.prompt or "").startswith("long"):
            raise TakesLong
        if request.prompt == "grammar":
            raise TakesLong("grammars")
        return super().encode(request, ready)

    def encode_long(self, request: Request, ready: Any, lane: Lane = "prompts") -> Any:
        self.began.release()
        assert (self.going_on if lane == "prompts" else self.checking).acquire(timeout=60)
        if self.was_interrupted:
            raise OrcdError("interrupted")
        if request.prompt == "long and too long":
            raise ContextLengthExceeded("too long")
        return super().encode(request, ready)

    def interrupt(self) -> None:
        self.was_interrupted = True
        self.going_on.release()
        self.checking.release()


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture
def scene(store: JobStore, encoder: Encoder) -> Iterator[ClaimerScene]:
    with ClaimerScene(store, encoder) as scene:
        yield scene


def test_short_prompts_overtake_long_ones_which_keep_their_order(
    scene: ClaimerScene, store: JobStore, encoder: Encoder
) -> None:
    for job_id in ("long-1", "long-2", "short-1", "short-2"):
        scene.put(job_id, LONG if job_id.startswith("long") else REQUEST)
    assert [scene.begun().job_id for _ in range(2)] == ["short-1", "short-2"]
    encoder.going_on.release(2)
    assert [scene.begun().job_id for _ in range(2)] == ["long-1", "long-2"]


def test_new_grammars_hold_up_neither_short_prompts_nor_long_ones(scene: ClaimerScene, encoder: Encoder) -> None:
    num_grammars = MAX_WAITING + 4
    for number in range(num_grammars):
        scene.put(f"grammar-{number}", parse({"prompt": "grammar"}))
    scene.put("short", REQUEST)
    scene.put("long", LONG)
    assert scene.begun().job_id == "short"
    encoder.going_on.release()
    assert scene.begun().job_id == "long"
    encoder.checking.release(num_grammars)
    assert [scene.begun().job_id for _ in range(num_grammars)] == [
        f"grammar-{number}" for number in range(num_grammars)
    ]


def test_what_is_wrong_with_a_long_prompt_ends_its_job(scene: ClaimerScene, encoder: Encoder) -> None:
    encoder.going_on.release()
    scene.put("a", parse({"prompt": "long and too long"}))
    assert error_of(scene).code == "CONTEXT_LENGTH_EXCEEDED"


def test_a_job_that_is_cancelled_while_it_waits_is_not_encoded(scene: ClaimerScene, encoder: Encoder) -> None:
    scene.put("a", LONG)
    scene.put("b", LONG)
    assert encoder.began.acquire(timeout=60)
    scene.put("c", REQUEST)
    assert scene.begun().job_id == "c"  # so b has been claimed, too
    assert scene.claimer.cancel("b", Cancelled("revoked"))
    encoder.going_on.release()
    assert scene.begun().job_id == "a"
    assert error_of(scene).code == "CANCELLED"
    assert not encoder.began.acquire(blocking=False)


@contextmanager
def _stopping(scene: ClaimerScene) -> Iterator[None]:
    scene.claimer.start(READY)
    yield
    scene.claimer.stop(5)
    assert scene.deaths == []


def test_at_the_end_long_prompts_go_back_to_the_queue_at_once(
    make_store: MakeStore, connection: redis.Redis, encoder: Encoder
) -> None:
    """The one that is being encoded, too. Nobody has lost an attempt, and somebody else may claim them."""
    store = make_store()
    for job_id in ("a", "b"):
        submit(store, job_id, LONG)
    scene = ClaimerScene(store, encoder)
    with _stopping(scene):
        scene.put("a")
        scene.put("b")
        assert encoder.began.acquire(timeout=60)
        scene.put("c", REQUEST)
        assert scene.begun().job_id == "c"
    assert [scene.outcome(), scene.outcome()] == [("a", None), ("b", None)]
    for job_id in ("a", "b"):
        fields = connection.hmget(schema.job_key(job_id), "state", "attempt", "losses")
        assert fields == [b"queued", b"0", None]
