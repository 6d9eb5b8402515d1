"""What launches depend on of a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True, eq=False)
class GpuSpec:
    """The properties of a GPU that launches depend on."""

    arch: str  # sm_XY, as kernels are compiled for it
    num_sms: int  # streaming multiprocessors
    shared_bytes: int  # most shared memory of a block, static and dynamic together

    @cached_property
    def has_dependent_launch(self) -> bool:
        """Whether a kernel can start before the previous one has ended (griddepcontrol): Hopper and later."""
        return int(self.arch.removeprefix("sm_").rstrip("a")) >= 90

    @cached_property
    def has_wgmma(self) -> bool:
        """Whether it has Hopper's warpgroup products."""
        return self.arch == "sm_90a"

    def spread(self, shared_bytes: int, num_blocks: int) -> int:
        """Bytes of shared memory of a block with which no SM holds more than its share of ``num_blocks``.

        Blocks that start while the previous kernel still runs would be put together where that leaves room.
        """
        share = -(-num_blocks // self.num_sms)
        return max(shared_bytes, self.shared_bytes // (share + 1)) if self.has_dependent_launch else shared_bytes


H100 = GpuSpec("sm_90a", 132, 227 * 1024)
"""Stands in where a step is planned with no GPU at hand."""
A100 = GpuSpec("sm_80", 108, 163 * 1024)
"""Stands for all others where kernels are listed."""
