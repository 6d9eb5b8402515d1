"""What a fault is, what it may touch, and what is noted of each time that it is staged."""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from tests.chaos.clients.client_pool import ClientPool
from tests.chaos.system.clock_shift import ClockShift
from tests.chaos.system.redis_service import RedisService
from tests.chaos.system.worker_fleet import Worker, WorkerFleet


@dataclass(slots=True)
class Scene:
    """Everything that faults are staged on; ``chance`` decides all that is left to chance."""

    redis: RedisService
    fleet: WorkerFleet
    clients: ClientPool
    clock: ClockShift
    chance: random.Random
    lease_s: float

    def wait(self, least_s: float, most_s: float) -> None:
        """Some time, by chance."""
        time.sleep(self.chance.uniform(least_s, most_s))

    def worker(self) -> Worker | None:
        """One of those that run."""
        running = [worker for worker in self.fleet.workers if worker.is_alive]
        return self.chance.choice(running) if running else None


@dataclass(slots=True)
class Staged:
    """A fault as it was staged, on the clock of `time.monotonic`.

    ``back_s`` is when a model was served again that nobody served after it. ``targets`` are the ids of jobs that it
    was aimed at, which may end with one of ``target_errors``, and any stream that met it with one of ``errors_of_all``.
    ``forgotten_since_s`` to ``forgetting_ended_s`` is the
    time of which Redis has forgotten what was written. ``num_kills`` are SIGKILLs.
    """

    name: str
    is_kill: bool
    start_s: float
    end_s: float = 0.0
    back_s: dict[str, float] = field(default_factory=dict)
    targets: set[str] = field(default_factory=set)
    target_errors: tuple[str, ...] = ()
    errors_of_all: tuple[str, ...] = ()
    forgotten_since_s: float | None = None
    forgetting_ended_s: float = 0.0
    num_kills: int = 0

    def end_for(self, model: str) -> float:
        """From when on the streams of a model must go on."""
        return max(self.end_s, self.back_s.get(model, 0.0))

    @property
    def forgets(self) -> bool:
        """Whether Redis has forgotten anything."""
        return self.forgotten_since_s is not None

    def forgot(self, earliest_s: float, latest_s: float) -> bool:
        """Whether Redis may have forgotten what it took between these times."""
        since = self.forgotten_since_s
        return since is not None and since <= latest_s and earliest_s <= self.forgetting_ended_s

    def concerns(self, begin_s: float, end_s: float) -> bool:
        """Whether a client that was there from ``begin_s`` to ``end_s`` met it."""
        return begin_s <= self.end_s and end_s >= self.start_s


class Fault(ABC):
    """``stage`` brings the fault about and returns when it is over, as far as it is over by itself.

    ``ends_workers`` faults are only staged where dead workers are replaced. After an ``is_kill`` fault every stream
    must go on within the lease and two seconds. ``weight`` is how often it is chosen once all have been staged.
    """

    name: ClassVar[str]
    ends_workers: ClassVar[bool] = False
    is_kill: ClassVar[bool] = False
    weight: ClassVar[int] = 1

    @abstractmethod
    def stage(self, scene: Scene, staged: Staged) -> None:
        """Stage it once; notes in ``staged`` what the harness must know."""

    def why_not(self, scene: Scene) -> str:
        """Why it cannot be staged on this machine; '' if it can."""
        return ""
