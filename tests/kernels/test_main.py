"""``python -m kernels compile``."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings.nvrtc", reason="the CUDA packages are not installed")

from kernels.__main__ import SERIALISED, Usage, compile_all, usages
from kernels.runtime.compiler import Compiler

SERIAL = """extern "C" __global__ void serial(float* out, unsigned long long a, unsigned long long b) {
    float d[4] = {};
    for (int i = 0; i < 4; i++) {
        asm volatile("wgmma.fence.sync.aligned;");
        asm volatile("wgmma.mma_async.sync.aligned.m64n8k16.f32.f16.f16 {%0,%1,%2,%3}, %4, %5, 1, 1, 1, 0, 0;"
                     : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "l"(a), "l"(b));
        asm volatile("wgmma.commit_group.sync.aligned;");
        d[0] *= 2;  // before the wait
    }
    asm volatile("wgmma.wait_group.sync.aligned 0;");
    for (int i = 0; i < 4; i++) out[4 * threadIdx.x + i] = d[i];
}
"""


def test_costs_are_read_from_the_log() -> None:
    log = """ptxas info    : 8 bytes gmem
ptxas info    : Compiling entry function 'first' for 'sm_90a'
ptxas info    : Function properties for first
ptxas         .     16 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 48 registers, used 1 barriers, 400 bytes smem, 368 bytes cmem[0]
ptxas info    : Compiling entry function 'second' for 'sm_90a'
ptxas info    : Function properties for second
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 0 barriers"""
    assert list(usages(log)) == [Usage("first", 48, 400, 20), Usage("second", 32, 0, 0)]
    assert SERIALISED.search("ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions ...")


def test_the_command_prints_a_row_a_kernel_and_fails_if_one_does_not_compile(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(Compiler.__init__, "__kwdefaults__", {"cache": None, "sources": sources})
    assert compile_all(["sm_80", "sm_120"], [("fill", {"AMOUNT": 1})])
    rows = [line.split()[:4] for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows == [[arch, "fill", "AMOUNT=1", "fill"] for arch in ("sm_80", "sm_120")]
    assert list((tmp_path / "orcd" / "kernels").iterdir())
    assert not compile_all(["sm_80"], [("fill", {"AMOUNT": "?"}), ("fill", {"AMOUNT": 1})])
    output = capsys.readouterr()
    assert "error" in output.err and "AMOUNT=1" in output.out


def test_the_command_fails_where_wgmma_waits_for_each_product(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (sources / "serial.cu").write_text(SERIAL)
    monkeypatch.setattr(Compiler.__init__, "__kwdefaults__", {"cache": tmp_path, "sources": sources})
    assert not compile_all(["sm_90a"], [("serial", {})])
    assert "sm_90a serial.cu (): ptxas info" in capsys.readouterr().err
