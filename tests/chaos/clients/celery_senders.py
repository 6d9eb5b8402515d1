"""Other people's Celery applications, which send messages with whole requests, alone and in canvases.

They wait for results, have Celery's own defaults, name our tasks and queues, and know nothing else of us.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec
import redis
from celery import Celery, chain, chord, group
from celery.canvas import Signature
from kombu.exceptions import KombuError
from kombu.exceptions import OperationalError as BrokerUnavailable

from orcd.result import Choice
from orcd.store.enqueue import queue_name
from tasks.celery_ext.tasks import GenerateChunkTask, GenerateTask
from tests.chaos.clients.cases import Case
from tests.chaos.clients.seen import Seen
from tests.chaos.clients.sync_clients import AWAY_S, END_TIMEOUT_S

POLL_S = 0.25
FAILURES = (redis.RedisError, BrokerUnavailable, KombuError, OSError, RuntimeError, AttributeError)
"""What Celery and kombu let through while Redis is away; the last one is of a channel that is closed twice."""


class CelerySenders:
    """The senders of one thread. Each method runs some cases and notes in ``seen`` what came of them."""

    def __init__(self, redis_url: str, chance: random.Random) -> None:
        self._app = Celery("somebody", broker=redis_url, backend=redis_url, set_as_current=False)
        self._app.conf.update(
            broker_connection_retry_on_startup=True,
            broker_transport_options={"max_retries": 2},
            task_publish_retry_policy={"max_retries": 2, "interval_start": 0.1},
        )
        self._chance = chance

    def kinds(self) -> dict[str, tuple[int, Callable[[Sequence[Case], Seen], None]]]:
        """Name -> (how often, method)."""
        return {
            "Celery message": (3, self.message),
            "Celery chain": (2, self.chain),
            "Celery group": (2, self.group),
            "Celery chord": (2, self.chord),
            "Celery chunk": (2, self.chunk),
            "Celery countdown": (1, self.countdown),
            "Celery revoke": (2, self.revoke),
            "Celery expires": (1, self.expires),
            "Celery time limit": (1, self.time_limit),
        }

    def message(self, cases: Sequence[Case], seen: Seen) -> None:
        """One message with a whole request."""
        self._send(self._signature(cases[0], seen.job_id), seen)
        self._expect(seen.job_id, cases[0], seen)

    def countdown(self, cases: Sequence[Case], seen: Seen) -> None:
        """A message for a later time."""
        signature = self._signature(cases[0], seen.job_id).set(countdown=self._chance.uniform(1, 4))
        self._send(signature, seen)
        self._expect(seen.job_id, cases[0], seen)

    def chain(self, cases: Sequence[Case], seen: Seen) -> None:
        """Three jobs, one after the other."""
        named = self._named(cases[:3], seen)
        self._send(chain(*(self._signature(case, job_id) for job_id, case in named)), seen)
        self._expect_all(named, seen)

    def group(self, cases: Sequence[Case], seen: Seen) -> None:
        """Three jobs at once."""
        named = self._named(cases[:3], seen)
        self._send(group(*(self._signature(case, job_id) for job_id, case in named)), seen)
        self._expect_all(named, seen)

    def chord(self, cases: Sequence[Case], seen: Seen) -> None:
        """Two jobs at once, and then a third."""
        named = self._named(cases[:3], seen)
        *header, body = (self._signature(case, job_id) for job_id, case in named)
        self._send(chord(header, body), seen)
        self._expect_all(named, seen)

    def chunk(self, cases: Sequence[Case], seen: Seen) -> None:
        """Three requests in one message."""
        chosen = cases[:3]
        seen.num_jobs = len(chosen)
        keywords = {"requests": [case.fields for case in chosen]}
        options = self._options(chosen[0], seen.job_id)
        self._send(self._app.signature(GenerateChunkTask.name, kwargs=keywords, **options), seen)
        found = self._wait(seen.job_id, seen)
        for case, result in zip(chosen, found or (), strict=False):
            self._compare(result, case, seen)

    def revoke(self, cases: Sequence[Case], seen: Seen) -> None:
        """Flower's button, sooner or later: the task must end."""
        seen.may_fail = ("REVOKED", "TaskRevokedError", "Cancelled")
        self._send(self._signature(cases[0], seen.job_id), seen)
        time.sleep(self._chance.choice([0.0, 0.3, 1.0]))
        with suppress(*FAILURES):
            self._app.control.revoke(seen.job_id, terminate=self._chance.random() < 0.5)
        self._expect(seen.job_id, cases[0], seen)

    def expires(self, cases: Sequence[Case], seen: Seen) -> None:
        """A message that is worth nothing after a while: the task must end."""
        seen.may_fail = ("REVOKED", "TaskRevokedError", "Expired", "Cancelled")
        self._send(self._signature(cases[0], seen.job_id).set(expires=self._chance.choice([0.05, 1.0, 4.0])), seen)
        self._expect(seen.job_id, cases[0], seen)

    def time_limit(self, cases: Sequence[Case], seen: Seen) -> None:
        """A task that must not run for more than a second."""
        seen.may_fail = ("TimeLimitExceeded", "SoftTimeLimitExceeded", "InferenceTimeout", "REVOKED")
        self._send(self._signature(cases[0], seen.job_id).set(time_limit=1), seen)
        self._expect(seen.job_id, cases[0], seen)

    def _named(self, cases: Sequence[Case], seen: Seen) -> list[tuple[str, Case]]:
        seen.num_jobs = len(cases)
        return [(f"{seen.job_id}-{place}", case) for place, case in enumerate(cases)]

    def _signature(self, case: Case, job_id: str) -> Signature:
        return self._app.signature(GenerateTask.name, kwargs=case.fields, immutable=True, **self._options(case, job_id))

    def _options(self, case: Case, job_id: str) -> dict[str, Any]:
        queue = queue_name(self._chance.choice([None, case.model]))  # a request that names its model, on either queue
        return {"task_id": job_id, "queue": queue, "app": self._app}

    def _send(self, signature: Signature, seen: Seen) -> None:
        """Send it, again if Redis is away: the ids are its own, so that this is harmless."""
        end = time.monotonic() + AWAY_S
        while True:
            seen.asked_s = time.monotonic()
            try:
                signature.apply_async()
                seen.submitted_s = time.monotonic()
                return
            except FAILURES:
                if time.monotonic() > end:
                    raise
                time.sleep(0.3)

    def _expect_all(self, named: Sequence[tuple[str, Case]], seen: Seen) -> None:
        for job_id, case in named:
            self._expect(job_id, case, seen)
            if seen.error:  # those behind it in a chain or chord have no result
                return

    def _expect(self, task_id: str, case: Case, seen: Seen) -> None:
        result = self._wait(task_id, seen)
        if result is not None:
            self._compare(result, case, seen)

    def _compare(self, result: Any, case: Case, seen: Seen) -> None:
        if result.get("error"):
            seen.error = result["error"]["code"]
            return
        seen.compare(tuple(msgspec.convert(result["choices"], list[Choice], str_keys=True)), case.answer)

    def _wait(self, task_id: str, seen: Seen) -> Any:
        """A task's result; None if it has none, and ``seen`` then says why."""
        end = seen.submitted_s + seen.num_jobs * END_TIMEOUT_S / 2 + END_TIMEOUT_S / 2
        state = "unknown"
        while time.monotonic() < end and not seen.problem:
            with suppress(*FAILURES):
                meta = self._app.backend.get_task_meta(task_id, cache=False)
                state = meta["status"]
                if state == "SUCCESS":
                    return meta["result"]
                if state in ("FAILURE", "REVOKED"):
                    seen.error = type(meta["result"]).__name__ if state == "FAILURE" else state
                    return None
            time.sleep(POLL_S)
        seen.blame("lost", f"task {task_id} is {state} after {time.monotonic() - seen.submitted_s:.0f} s")
        return None
