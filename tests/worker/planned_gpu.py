"""A GPU that is not there, with as much memory as a test says."""

from __future__ import annotations

from collections.abc import Iterable

from kernels.devices.dry_run import DryRunDevice
from kernels.runtime.compiler import Variant
from kernels.runtime.memory import MemoryPlan


class PlannedGpu(DryRunDevice):
    """A GPU with so many bytes to give, that only notes what it is asked for."""

    def __init__(self, budget_bytes: int) -> None:
        super().__init__("cuda:0")
        self.budget_bytes = budget_bytes
        self.allocated: list[MemoryPlan] = []
        self.prepared: set[str] = set()
        self.copied: frozenset[int] = frozenset()

    def allocate(
        self, plan: MemoryPlan, variants: Iterable[Variant] = (), copied: frozenset[int] = frozenset()
    ) -> None:
        plan.check(self.budget_bytes)
        self.allocated.append(plan)
        self.copied = copied
        self.prepared = set(map(str, variants))
