"""Processes that die, stand still, or are told to leave."""

from __future__ import annotations

import signal
import time
from contextlib import suppress

import psutil

from tests.chaos.faults.fault import Fault, Scene, Staged
from tests.chaos.system.worker_fleet import Worker

NEW_ENGINE_S = 5.0


class EngineKilled(Fault):
    """SIGKILL for an engine; its worker starts another."""

    name = "engine SIGKILL"
    is_kill = True
    weight = 6

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Kill one."""
        worker = scene.worker()
        engine = worker.engine() if worker else None
        if engine is not None:
            with suppress(psutil.NoSuchProcess):
                engine.kill()
                staged.num_kills += 1


class WorkerKilled(Fault):
    """SIGKILL for a Celery process; its engine follows."""

    name = "worker SIGKILL"
    ends_workers = True
    is_kill = True
    weight = 6

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Kill one."""
        if worker := scene.worker():
            worker.expected_exit = -signal.SIGKILL
            worker.signal(signal.SIGKILL)
            worker.process.wait()
            staged.num_kills += 1


class WorkerGroupKilled(Fault):
    """SIGKILL for a Celery process and its engine at once."""

    name = "process group SIGKILL"
    ends_workers = True
    is_kill = True
    weight = 4

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Kill one."""
        if worker := scene.worker():
            _kill_group(worker)
            staged.num_kills += 2


class TextProcessKilled(Fault):
    """SIGKILL for a process that renders and tokenises: its worker starts another, and no job notices."""

    name = "text process SIGKILL"

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Kill one."""
        worker = scene.worker()
        process = worker.text_process() if worker else None
        if process is not None:
            with suppress(psutil.NoSuchProcess):
                process.kill()
                staged.num_kills += 1


class WorkerStopped(Fault):
    """A worker that stands still for longer than its lease and then goes on as if nothing had been (a zombie)."""

    name = "SIGSTOP zombie"
    weight = 3

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Stop the Celery process, alone or with its engine."""
        if worker := scene.worker():
            send = worker.signal_group if scene.chance.random() < 0.5 else worker.signal
            send(signal.SIGSTOP)
            scene.wait(1.2 * scene.lease_s, 2.0 * scene.lease_s)
            send(signal.SIGCONT)


class EngineHangs(Fault):
    """An engine that stands still for good: its worker must notice and replace it."""

    name = "engine hangs"

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Stop one and wait until it is replaced."""
        worker = scene.worker()
        engine = worker.engine() if worker else None
        if worker is not None and engine is not None:
            _hang(worker, engine)


class EngineHangsLoading(Fault):
    """An engine that stands still while it loads: its worker must notice that too."""

    name = "engine hangs while loading"

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Kill one, and stop the one that is started in its place before it is ready."""
        worker = scene.worker()
        old = worker.engine() if worker else None
        if worker is None or old is None:
            return
        with suppress(psutil.NoSuchProcess):
            old.kill()
            staged.num_kills += 1
        end = time.monotonic() + NEW_ENGINE_S
        while time.monotonic() < end and worker.is_alive:
            new = worker.engine()
            if new is not None and new.pid != old.pid:
                _hang(worker, new)
                return
            time.sleep(0.01)


class WorkerLeaves(Fault):
    """SIGTERM: a worker hands its jobs over and exits with 0."""

    name = "worker told to leave"
    ends_workers = True

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Tell one."""
        if worker := scene.worker():
            scene.fleet.leave(worker)


class WorkerLeavesAtOnce(Fault):
    """SIGQUIT, Celery's cold shutdown: a worker hands its jobs over without finishing any."""

    name = "worker told to leave at once"
    ends_workers = True

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Tell one."""
        if worker := scene.worker():
            scene.fleet.leave(worker, signal.SIGQUIT)


class WorkerSentAway(Fault):
    """`orcd drain` or `orcd stop` by the worker's name, from anywhere: it hands its jobs over and exits with 0."""

    name = "worker sent away by name"
    ends_workers = True

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Send one away."""
        if worker := scene.worker():
            scene.fleet.send_away(worker, scene.chance.choice(["drain", "stop"]))


class WorkerStartsWithoutRedis(Fault):
    """A worker that is started while Redis is away waits for it; later it is told to leave."""

    name = "worker started without Redis"

    def stage(self, scene: Scene, staged: Staged) -> None:
        """Start one more, and end it once it has served for a while."""
        like = scene.worker()
        if like is None:
            return
        scene.redis.kill()
        staged.num_kills += 1
        worker = scene.fleet.start(like.model, **like.variables)
        scene.wait(2.5, 4.0)
        scene.redis.start()
        worker.wait_until_ready(1)
        scene.wait(0.5, 1.5)
        scene.fleet.leave(worker)
        scene.fleet.check()  # it was one more: nobody comes in its place


def _kill_group(worker: Worker) -> None:
    worker.expected_exit = -signal.SIGKILL
    worker.signal_group(signal.SIGKILL)
    worker.process.wait()


def _hang(worker: Worker, engine: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        engine.suspend()
        count = worker.count_ready() + 1
        worker.wait_until_ready(count)
