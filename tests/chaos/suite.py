"""A run: workers, clients, and one fault after the other by a seed."""

from __future__ import annotations

import random
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from orcd.client import Client
from tests.chaos.assessment import KILL_MARGIN_S
from tests.chaos.clients.cases import DEMO, OTHER, Case, make_cases, with_answers
from tests.chaos.clients.client_pool import ClientPool
from tests.chaos.clients.client_process import ClientPlan
from tests.chaos.clients.seen import Seen
from tests.chaos.faults.fault import Fault, Scene, Staged
from tests.chaos.system.clock_shift import ClockShift
from tests.chaos.system.mortal_engine import mortal_environment
from tests.chaos.system.redis_service import RedisService
from tests.chaos.system.worker_fleet import WorkerFleet

MODELS = (DEMO, DEMO, OTHER)
LEASE_S = 3.0
SETTLE_S = 1.5
"""Between a fault that is no kill and the next one."""
MAX_WAIT_S = 150.0
"""At the end, for the last clients to come back: that of a canvas waits for two minutes."""
BEGIN_S = 4.0
"""For the clients to start."""
OVERLAP_SHARE = 0.25
"""So often the next fault does not wait until everybody has recovered."""


@dataclass(frozen=True, slots=True)
class Phase:
    """Part of a run. Without ``replaces_workers`` nobody starts a worker anew, and nobody ends one.

    ``in_order`` faults are staged in the order given, others by chance, each at least once if the time is enough.
    """

    faults: Sequence[type[Fault]]
    seconds: float
    replaces_workers: bool
    in_order: bool = False


@dataclass(slots=True)
class Run:
    """What a run gave. ``problems`` is about the workers and the harness itself."""

    seen: list[Seen] = field(default_factory=list)
    staged: list[Staged] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    begin_s: float = 0.0


class Suite:
    """Runs some phases. ``folder`` takes the workers' logs."""

    def __init__(self, phases: Sequence[Phase], seed: int, folder: Path, num_cases: int) -> None:
        """There are ``num_cases`` requests for the one model, and half as many for the other."""
        self._phases = phases
        self._num_cases = num_cases
        self._seed = seed
        self._folder = folder
        self._chance = random.Random(seed)
        self._run = Run()

    def run(self) -> Run:
        """From the first worker to the last client."""
        with ExitStack() as stack:
            clock = ClockShift(self._folder)
            server = stack.enter_context(RedisService(clock.environment("redis")))
            fleet = stack.enter_context(WorkerFleet(server.url, self._folder, round(1000 * LEASE_S)))
            mortal = mortal_environment(self._folder)
            for model in MODELS:
                fleet.start(model, **mortal | (clock.environment("worker") if model == OTHER else {}))
            for worker in fleet.workers:
                worker.wait_until_ready(1)
            plan = ClientPlan(server.url, self._seed, self._cases(server.url))
            clients = stack.enter_context(ClientPool(plan))
            scene = Scene(server, fleet, clients, clock, self._chance, LEASE_S)
            self._run.begin_s = time.monotonic()
            time.sleep(BEGIN_S)
            for phase in self._phases:
                self._stage_all(phase, scene)
            self._run.problems += clients.check()
            self._say("no more faults; waiting for the clients")
            max_wait_s = MAX_WAIT_S if any(worker.is_alive for worker in fleet.workers) else 0.0
            self._run.seen = clients.stop(max_wait_s, self._is_hopeless)
            self._run.problems += clients.check()
            self._end_workers(fleet)
        return self._run

    def _cases(self, redis_url: str) -> list[Case]:
        with Client(redis_url) as client:
            cases = make_cases(self._seed, DEMO, self._num_cases)
            return with_answers(client, cases + make_cases(self._seed, OTHER, self._num_cases // 2))

    def _is_hopeless(self, seen: Seen) -> bool:
        """Whether a Celery message was forgotten with Redis's last moments: nobody can know of it."""
        return seen.kind.startswith("Celery") and any(
            staged.forgot(seen.asked_s, seen.submitted_s) for staged in self._run.staged
        )

    def _stage_all(self, phase: Phase, scene: Scene) -> None:
        end = time.monotonic() + phase.seconds
        chosen = self._chosen(phase, scene)
        while time.monotonic() < end and any(worker.is_alive for worker in scene.fleet.workers):
            if scene.clients.check():
                return  # what is staged from here on would say little
            self._stage(next(chosen), scene, phase)

    def _chosen(self, phase: Phase, scene: Scene) -> Iterator[Fault]:
        """The faults of a phase, without end."""
        faults = [fault() for fault in phase.faults if phase.replaces_workers or not fault.ends_workers]
        self._run.left_out.update({fault.name: why for fault in faults if (why := fault.why_not(scene))})
        faults = [fault for fault in faults if fault.name not in self._run.left_out]
        yield from faults if phase.in_order else self._chance.sample(faults, len(faults))
        while True:
            yield self._chance.choices(faults, [fault.weight for fault in faults])[0]

    def _stage(self, fault: Fault, scene: Scene, phase: Phase) -> None:
        staged = Staged(fault.name, fault.is_kill, time.monotonic())
        self._say(f"{fault.name}")
        self._run.staged.append(staged)
        try:
            fault.stage(scene, staged)
            staged.end_s = time.monotonic()
            self._recover(staged, scene, phase)
        except Exception as error:  # whatever it is, the run goes on and fails
            staged.end_s = staged.end_s or time.monotonic()
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            self._run.problems.append(f"{fault.name}: {type(error).__name__} at {place}: {error}")
            self._say(self._run.problems[-1])
        num_problems = len(self._run.problems)
        self._run.problems += [line for line in scene.fleet.check() if line not in self._run.problems]
        for line in self._run.problems[num_problems:]:
            self._say(line)

    def _recover(self, staged: Staged, scene: Scene, phase: Phase) -> None:
        """Replace who is dead, as far as anybody does; wait until all are well again, or only for a moment."""
        fleet = scene.fleet
        counts = {worker: worker.count_ready() for worker in fleet.workers}
        if phase.replaces_workers:
            for worker in fleet.replace_dead():
                is_alone = not any(other.model == worker.model and other is not worker for other in fleet.workers)
                if is_alone:
                    worker.wait_until_ready(1)
                    staged.back_s[worker.model.stem] = time.monotonic()
                counts[worker] = 0
        if self._chance.random() < OVERLAP_SHARE and not phase.in_order:
            scene.wait(0.2, 2.0)
            return
        for worker in fleet.workers:
            if counts.get(worker) == 0 and worker.is_alive:
                worker.wait_until_ready(1)
        settled_s = staged.end_s + (scene.lease_s + KILL_MARGIN_S if staged.is_kill else SETTLE_S)
        time.sleep(max(0.0, settled_s - time.monotonic()))
        scene.wait(0.0, 0.5)

    def _end_workers(self, fleet: WorkerFleet) -> None:
        for worker in list(fleet.workers):
            if worker.is_alive:
                fleet.leave(worker)
        self._run.problems += [line for line in fleet.check() if line not in self._run.problems]

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._run.begin_s:7.1f} s  {text}", file=sys.stderr, flush=True)
