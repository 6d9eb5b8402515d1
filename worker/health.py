"""Is the engine well: heartbeat, figures and the checks that run while there is nothing else to do."""

from __future__ import annotations

import time

from kernels.device import Device
from worker.contract import Stats
from worker.engine.engine import Engine

WORKING_EVERY_S = 1.0
IDLE_EVERY_S = 5.0


class Health:
    """Beats once a second while there is work and every few seconds without."""

    def __init__(self, engine: Engine, device: Device) -> None:
        self._engine = engine
        self._device = device
        self._last_beat = time.monotonic()

    def due_in_s(self) -> float:
        """Seconds until the next `beat`; 0 or less when it is due."""
        period = WORKING_EVERY_S if self._engine.has_work else IDLE_EVERY_S
        return self._last_beat + period - time.monotonic()

    def beat(self) -> Stats:
        """The figures of this moment; when idle, raises AssertionError if the engine's bookkeeping does not agree."""
        self._last_beat = time.monotonic()
        if not self._engine.has_work:
            self._engine.check_invariants()
        return self._engine.stats(memory_bytes=self._device.memory_bytes())
