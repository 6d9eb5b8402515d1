"""Requests that nobody should send, more of them than there is room for, and many that are cancelled at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orcd.client import Client
from orcd.errors import InvalidRequest, LogDamaged, QueueFull
from orcd.store import schema
from tests.chaos.clients.cases import DEMO
from tests.chaos.faults.data_faults import TARGETS
from tests.chaos.faults.fault import Fault, Scene, Staged
from tests.chaos.system.mortal_engine import DEADLY_IDS

HUGE_BYTES = 4_000_000
HUGE_TEXTS = ("x" * HUGE_BYTES, "an old silent pond " * (HUGE_BYTES // 19), "\u4e16\U0001f438 " * (HUGE_BYTES // 8))
"""One word, many words, and characters of several bytes."""
END_S = 90.0
"""A request of a fault's own that has not ended by then is lost."""


class CancelStorm(Fault):
    """All jobs of some kinds of client are cancelled at once."""

    name = "cancel storm"
    weight = 2

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Cancel those that are there."""
        staged.target_errors = ("CANCELLED",)
        chosen = [seen.job_id for seen in scene.clients.active(*TARGETS)]
        staged.targets.update(chosen)
        with Client(scene.redis.url) as client:
            for job_id in chosen:
                try:
                    client.cancel(job_id)
                except (InvalidRequest, LogDamaged):  # it is about to be submitted, or the fault before was to its log
                    continue


class _RequestsOfItsOwn(Fault):
    """Requests that must end with one error, and do no harm to others."""

    def end_with(self, scene: Scene, code: str, requests: Sequence[dict[str, Any]]) -> None:
        """Submit them at once. Raises AssertionError if one ends otherwise, TimeoutError if one does not."""
        with Client(scene.redis.url) as client:
            for result in [client.result(job_id, timeout=END_S) for job_id in client.submit_many(requests)]:
                found = result.error.code if result.error else result.state
                assert found == code, f"job {result.job_id} ended with {found}, not {code}"


class DeadlyRequest(_RequestsOfItsOwn):
    """A request that kills every engine that draws its fourth token: it is POISONED, and nobody else."""

    name = "request that kills engines"

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Submit it, and wait until it has ended."""
        if worker := scene.worker():
            deadly = {"prompt_token_ids": [*DEADLY_IDS], "max_tokens": 20, "ignore_eos": True}
            self.end_with(scene, "POISONED", [deadly | {"model": worker.model.stem}])


class HugePrompts(_RequestsOfItsOwn):
    """Prompts of 4 MB, which no model here has room for."""

    name = "prompts of 4 MB"

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Submit some, and wait until they have ended."""
        if worker := scene.worker():
            requests = [{"prompt": text, "model": worker.model.stem} for text in HUGE_TEXTS]
            requests += [{"messages": [{"role": "user", "content": text}], "model": DEMO.stem} for text in HUGE_TEXTS]
            self.end_with(scene, "CONTEXT_LENGTH_EXCEEDED", requests)


class QueueIsFull(Fault):
    """For a while no job may wait: clients try again, and messages with whole requests are refused."""

    name = "queue full"

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Let there be no room."""
        staged.errors_of_all = (QueueFull.code, QueueFull.__name__)
        with scene.redis.connection() as connection:
            connection.set(schema.MAX_QUEUED, 0, ex=10)
            scene.wait(1.5, 3.0)
            connection.delete(schema.MAX_QUEUED)
