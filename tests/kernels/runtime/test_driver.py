"""kernels.runtime.driver: the bindings to CUDA ask for no library before the first call, and nobody goes round them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from kernels.devices.cuda import CudaDevice
from kernels.errors import CompileFailed, CudaFailure
from kernels.runtime import driver

KERNELS = Path(driver.__file__).parents[1]


def test_importing_it_asks_for_no_library() -> None:
    code = "import sys, kernels.devices.cuda, kernels.registry; print({'cuda', 'cupy_backends'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=KERNELS.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_each_library_is_called_by_one_module() -> None:
    users = {
        (path.stem, line.split()[1])
        for path in KERNELS.rglob("*.py")
        for line in path.read_text().splitlines()
        if line.split()[:1] in (["import"], ["from"])
        and line.split()[1].split(".")[0] in ("cuda", "cupy", "cupy_backends")
    }
    assert users == {("driver", "cuda.bindings"), ("cuda_runtime", "cupy_backends.cuda.api")}


def test_what_does_not_compile_is_told_with_its_line() -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="the CUDA packages are not installed")
    with pytest.raises(CompileFailed, match=r'(?s)NVRTC_ERROR_COMPILATION\nwrong\.cu\(2\): error: .*"nothing"'):
        driver.compile_source("wrong.cu", "\nint x = nothing;\n", ("-arch=sm_80",))
    image, log = driver.compile_source("right.cu", 'extern "C" __global__ void f() {}', ("-arch=sm_80",))
    assert image.startswith(b"\x7fELF") and isinstance(log, str)
    assert driver.nvrtc_version().startswith("nvrtc ")


@pytest.mark.gpu
def test_failures_of_calls_become_errors_that_name_them(device: CudaDevice) -> None:
    with pytest.raises(CudaFailure, match=r"nothing\.cu: CUDA_ERROR_"):
        driver.load_module("nothing.cu", b"no cubin")
