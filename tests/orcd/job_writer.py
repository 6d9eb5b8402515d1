"""A worker's part, played by the test: claims jobs and writes their logs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import redis

from orcd.client import Client
from orcd.events import End, Error, Event, Position, Started, Token, state_after
from orcd.store.claim import Claim
from orcd.store.commands.redis_script import RedisScript
from orcd.store.job_store import Append, JobStore
from orcd.store.token_log import LoggedEvent

MakeStore = Callable[..., JobStore]


class Writer:
    """Writes a claimed job's log as a worker does: one event after the other, from where the log stopped."""

    def __init__(self, store: JobStore, claim: Claim) -> None:
        self.store = store
        self.claim = claim
        self.position = claim.log[-1].position if claim.log else Position()
        tokens = [logged.event for logged in claim.log if isinstance(logged.event, Token)]
        self.num_tokens = sum(len(event.ids) for event in tokens)

    def write(self, *events: Event) -> bool:
        """Append the events in one call; False if they were not written."""
        append = Append(self.claim.job_id, self.claim.lease, self.position, packing=self.claim.packing)
        for event in events:
            self.position = self.position.after(len(event.ids) if isinstance(event, Token) else 0)
            append.events.append(LoggedEvent(self.position, event))
            append.final_state = state_after(event)
        return self.store.append([append])[0].status == "appended"

    def start(self) -> bool:
        claim = self.claim
        return self.write(Started(claim.job_id, "demo", claim.started_ms, claim.attempt))

    def tokens(self, num_tokens: int, *, first_id: int = 100) -> bool:
        """One event of that many tokens: token number i has the id ``first_id`` + i and the text `` i``."""
        first = self.num_tokens + 1
        numbers = range(first, first + num_tokens)
        self.num_tokens += num_tokens
        return self.write(Token("".join(f" {i}" for i in numbers), first, [first_id + i for i in numbers]))

    def end(self) -> bool:
        return self.write(End("length", 3, self.num_tokens, 1, 2, 3, "0" * 64, cached_tokens=2))

    def fail(self, code: str = "INTERNAL", message: str = "it broke") -> bool:
        return self.write(Error(code, message, False))


def claimed(store: JobStore, job_id: str) -> Writer:
    """Claim a job that must be free."""
    claim = store.claim([job_id])[0]
    assert isinstance(claim, Claim), claim
    return Writer(store, claim)


def as_of_version(version: int, scripts: dict[str, RedisScript]) -> None:
    """Make the scripts those of an older version: records of higher ones are left alone, and none is made one."""
    changed = set()
    for name, script in scripts.items():
        text = script.script.replace("(schema or 1) > 4", f"(schema or 1) > {version}")
        text = text.replace("packed == '1' and 3 or 4", str(version))
        if text != script.script:
            changed.add(name)
            scripts[name] = RedisScript(script.connection, text)
    assert {"cancel", "look", "claim"} & scripts.keys() <= changed


def store_of_version(version: int, make_store: MakeStore) -> JobStore:
    """A worker of an older version's view of the jobs."""
    store = make_store()
    as_of_version(version, store._scripts)
    return store


def messages(connection: redis.Redis) -> list[dict[str, Any]]:
    """The Celery messages that wait in the default queue, last sent first."""
    return [json.loads(text) for text in connection.lrange("orcd:5", 0, -1)]


def ended_job(client: Client, store: JobStore, num_tokens: int = 5) -> str:
    """Submit a job and work it off; returns its id."""
    job_id = client.submit(prompt="x")
    writer = claimed(store, job_id)
    writer.start()
    for _ in range(num_tokens):
        writer.tokens(1)
    writer.end()
    return job_id


def indices(events: list[Event]) -> list[int]:
    """The token indices in the events, in their order."""
    return [event.i + k for event in events if isinstance(event, Token) for k in range(len(event.ids))]


def kinds(events: list[Event]) -> list[type]:
    """The events' types, a run of the same one counted once."""
    types = [type(event) for event in events]
    return [kind for before, kind in zip([None, *types], types, strict=False) if kind is not before]
