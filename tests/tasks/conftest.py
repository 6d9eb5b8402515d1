"""A worker's part, played by the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

import tasks.demo
from tasks.job import Append, Claim, JobStore, LoggedEvent
from tasks.token_log import End, Error, Event, Position, Started, Token, state_after

DEMO_MODEL = (
    Path(tasks.demo.__file__).parent / "haiku-q4_k_m.gguf"
    if False
    else Path("/work/shared/conformance/models/qwen2-untied-q8_0.gguf")
)

MakeStore = Callable[..., JobStore]


@pytest.fixture(scope="session")
def demo_model() -> Path:
    """The model that ships with the project."""
    return DEMO_MODEL


@pytest.fixture
def connection(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as connection:
        yield connection


@pytest.fixture
def make_store(connection: redis.Redis) -> MakeStore:
    """JobStores of several workers on the empty Redis."""

    def make(owner: str = "worker-1", *, lease_ms: int = 60_000, ttl_s: int = 600) -> JobStore:
        return JobStore(connection, owner=owner, model="demo", lease_ms=lease_ms, ttl_s=ttl_s)

    return make


class Writer:
    """Writes a claimed job's log as a worker does: one event after the other, from where the log stopped."""

    def __init__(self, store: JobStore, claim: Claim) -> None:
        self.store = store
        self.claim = claim
        self.position = claim.log[-1].position if claim.log else Position()
        tokens = [logged.event for logged in claim.log if isinstance(logged.event, Token)]
        self.num_tokens = sum(len(event.ids) for event in tokens)

    def write(self, *events: Event) -> bool:
        """Append the events in one call; False if the job is not ours any more."""
        append = Append(self.claim.job_id, self.claim.epoch)
        for event in events:
            self.position = self.position.after(len(event.ids) if isinstance(event, Token) else 0)
            append.events.append(LoggedEvent(self.position, event))
            append.final_state = state_after(event)
        return self.store.append([append])[0].owned

    def start(self) -> bool:
        claim = self.claim
        return self.write(Started(claim.job_id, "demo", claim.started_ms, claim.attempt))

    def tokens(self, num_tokens: int) -> bool:
        """One event of that many tokens: token number i has the id 100 + i and the text `` i``."""
        first = self.num_tokens + 1
        numbers = range(first, first + num_tokens)
        self.num_tokens += num_tokens
        return self.write(Token("".join(f" {i}" for i in numbers), first, [100 + i for i in numbers]))

    def end(self) -> bool:
        return self.write(End("length", 3, self.num_tokens, 1, 2, 3, "0" * 64))

    def fail(self, code: str = "INTERNAL", message: str = "it broke") -> bool:
        return self.write(Error(code, message, False))


def claimed(store: JobStore, job_id: str) -> Writer:
    """Claim a job that must be free."""
    claim = store.claim(job_id)
    assert isinstance(claim, Claim), claim
    return Writer(store, claim)
