"""kernels.runtime.gpu_spec."""

from __future__ import annotations

import pytest

from kernels.runtime.gpu_spec import GpuSpec


@pytest.mark.parametrize(("arch", "has"), [("sm_80", False), ("sm_89", False), ("sm_90a", True), ("sm_120", True)])
def test_dependent_launch_came_with_hopper(arch: str, has: bool) -> None:
    assert GpuSpec(arch, 1, 1).has_dependent_launch is has
