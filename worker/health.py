"""Whether the engine is healthy: heartbeat, figures, and where the device's memory lies."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

import msgspec

from kernels.devices.protocol import Device
from orcd.errors import CudaError
from worker.contract import Stats
from worker.engine.engine import Engine
from worker.log import EventLog

WORKING_EVERY_S = 1.0
IDLE_EVERY_S = 5.0
MAX_NAMED = 3


class Health:
    """Beats once a second while there is work and every few seconds without.

    The first beat and one every ``check_every_s`` (0: only the first) verify that every buffer is plain device memory.
    Where one is not, the engine is unhealthy until a later check finds all of them in place: it finishes what it has,
    and the Celery side gives it no more.
    """

    def __init__(self, engine: Engine, device: Device, log: EventLog, check_every_s: float) -> None:
        self._engine = engine
        self._device = device
        self._log = log
        self._check_every_s = check_every_s or math.inf
        self._last_beat = time.monotonic()
        self._last_check = -math.inf
        self._problems: list[str] = []
        self._step_s = 0.0
        self._host_start_s = time.thread_time()

    def timed(self, step: Callable[[], None]) -> None:
        """Make a step, whose time is among the figures."""
        start = time.monotonic()
        step()
        self._step_s += time.monotonic() - start

    def due_in_s(self) -> float:
        """Seconds until the next `beat`; 0 or less when it is due."""
        period = WORKING_EVERY_S if self._engine.has_work else IDLE_EVERY_S
        return self._last_beat + period - time.monotonic()

    def beat(self) -> Stats:
        """The figures of this moment; when idle, raises AssertionError if the engine's bookkeeping does not agree."""
        self._last_beat = time.monotonic()
        if not self._engine.has_work:
            self._engine.check_invariants()
        if self._last_beat - self._last_check >= self._check_every_s:
            self._last_check = self._last_beat
            self._check_residency()
        stats = self._engine.stats(memory_bytes=self._device.memory_bytes())
        host_s = time.thread_time() - self._host_start_s
        return msgspec.structs.replace(stats, healthy=not self._problems, step_s=self._step_s, host_s=host_s)

    def _check_residency(self) -> None:
        problems = self._device.verify_residency()
        if problems != self._problems:
            self._tell(problems)
        self._problems = problems

    def _tell(self, problems: list[str]) -> None:
        if not problems:
            self._log.event("healthy", device=self._device.name)
            return
        more = f" and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        message = f"not plain memory of the device: {'; '.join(problems[:MAX_NAMED])}{more}; restart the worker"
        self._log.event("error", level="error", code=CudaError.code, message=message, device=self._device.name)
