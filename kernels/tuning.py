"""What is known of chips: data only. Ops choose their launch shapes by it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Chip:
    """What a launch depends on."""

    arch: str  # sm_XY, as the loader compiles for it
    num_processors: int  # streaming multiprocessors
    shared_bytes: int  # most shared memory of a block, static and dynamic together

    @property
    def has_dependent_launch(self) -> bool:
        """Whether a kernel can start before the one ahead of it has ended (griddepcontrol): Hopper and later."""
        return int(self.arch.removeprefix("sm_").rstrip("a")) >= 90

    @property
    def has_wgmma(self) -> bool:
        """Whether it has Hopper's warpgroup products."""
        return self.arch == "sm_90a"


H100 = Chip("sm_90a", 132, 227 * 1024)
"""Stands in where a step is planned with no GPU at hand."""
