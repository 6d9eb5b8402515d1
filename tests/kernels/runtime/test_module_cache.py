"""kernels.runtime.module_cache on a GPU."""

from __future__ import annotations

import time
from typing import Any

import pytest

from kernels.runtime.launcher import Context

pytestmark = pytest.mark.gpu


def test_preparing_variants_loads_them(probes: Context) -> None:
    modules: Any = probes._modules
    modules.prepare([("probe", {"SHIFT": shift}) for shift in (11, 12, 13)])
    start = time.perf_counter()
    modules.function("probe", "probe_spin", {"SHIFT": 12})
    assert time.perf_counter() - start < 0.01
