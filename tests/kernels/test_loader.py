"""kernels.loader and ``python -m kernels compile``, as far as they need no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings.nvrtc", reason="the CUDA packages are not installed")

import kernels.loader
from kernels.__main__ import SERIALISED, Usage, compile_all, usages
from kernels.errors import CompileFailed
from kernels.loader import Compiler, architecture, read_source
from kernels.operations import variants

KERNEL = """#pragma once
#include "part.cuh"
#include "part.cuh"
extern "C" __global__ void fill(float* values) { values[threadIdx.x] = part() + AMOUNT; }
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    folder = tmp_path / "cuda"
    folder.mkdir()
    (folder / "fill.cu").write_text(KERNEL)
    (folder / "part.cuh").write_text('#pragma once\n#include "deep.cuh"\n__device__ float part() { return deep(); }\n')
    (folder / "deep.cuh").write_text("__device__ float deep() { return 1.0f; }\n")
    return folder


@pytest.fixture
def compiler(sources: Path, tmp_path: Path) -> Compiler:
    return Compiler("sm_80", cache=tmp_path / "cache", sources=sources)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every file that is compiled rather than found."""
    seen: list[str] = []
    compile_ = kernels.loader._compile

    def counted(stem: str, source: str, options: tuple[str, ...]) -> kernels.loader.Cubin:
        seen.append(stem)
        return compile_(stem, source, options)

    monkeypatch.setattr(kernels.loader, "_compile", counted)
    return seen


def test_includes_come_in_once_and_errors_name_their_own_line(sources: Path, compiler: Compiler) -> None:
    text = read_source(sources / "fill.cu")
    assert text.count("float deep()") == text.count("float part()") == 1
    assert "#include" not in text and "#pragma once" not in text
    (sources / "deep.cuh").write_text("\n\n__device__ float deep() { return wrong; }\n")
    with pytest.raises(CompileFailed, match=r'(?s)fill\.cu.*AMOUNT=2.*deep\.cuh\(3\): error: identifier "wrong"'):
        compiler.cubin("fill", {"AMOUNT": 2})
    (sources / "deep.cuh").write_text("__device__ float deep() { return 1.0f; }\n")
    with pytest.raises(CompileFailed, match=r'fill\.cu\(4\): error: identifier "AMOUNT"'):
        compiler.cubin("fill", {})


def test_a_cubin_is_compiled_once(compiler: Compiler, compilations: list[str]) -> None:
    first = compiler.cubin("fill", {"AMOUNT": 1})
    assert first.image.startswith(b"\x7fELF") and "fill" in first.log
    assert compiler.cubin("fill", {"AMOUNT": 1}) == first
    assert compilations == ["fill"]


def test_what_goes_into_a_cubin_is_part_of_its_key(
    sources: Path, tmp_path: Path, compiler: Compiler, compilations: list[str]
) -> None:
    compiler.cubin("fill", {"AMOUNT": 1})
    compiler.cubin("fill", {"AMOUNT": 2})
    Compiler("sm_90a", cache=tmp_path / "cache", sources=sources).cubin("fill", {"AMOUNT": 1})
    (sources / "deep.cuh").write_text("__device__ float deep() { return 2.0f; }\n")
    compiler.cubin("fill", {"AMOUNT": 1})
    assert len(compilations) == 4


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b"", lambda content: b"x" * 100])
def test_a_damaged_cache_file_is_compiled_again(
    damage: object, tmp_path: Path, compiler: Compiler, compilations: list[str]
) -> None:
    cubin = compiler.cubin("fill", {"AMOUNT": 1})
    (kept,) = (tmp_path / "cache").iterdir()
    content = kept.read_bytes()
    kept.write_bytes(damage(content))  # type: ignore[operator]
    assert compiler.cubin("fill", {"AMOUNT": 1}).log.splitlines()[0] == cubin.log.splitlines()[0]
    assert compiler.cubin("fill", {"AMOUNT": 1}).image.startswith(b"\x7fELF")
    assert len(compilations) == 2


def test_no_place_for_the_cache_is_no_error(sources: Path, tmp_path: Path, compilations: list[str]) -> None:
    (tmp_path / "file").touch()
    compiler = Compiler("sm_80", cache=tmp_path / "file" / "cache", sources=sources)
    assert compiler.cubin("fill", {"AMOUNT": 1}).image
    assert compiler.cubin("fill", {"AMOUNT": 1}).image
    assert len(compilations) == 2


def test_hopper_is_compiled_for_with_its_own_features() -> None:
    assert [architecture(8, 0), architecture(9, 0), architecture(12, 0)] == ["sm_80", "sm_90a", "sm_120"]


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


def test_the_command_fails_where_wgmma_waits_for_each_product(
    sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (sources / "serial.cu").write_text(SERIAL)
    monkeypatch.setattr(Compiler.__init__, "__kwdefaults__", {"cache": tmp_path, "sources": sources})
    assert not compile_all(["sm_90a"], [("serial", {})])
    assert "sm_90a serial.cu (): ptxas info" in capsys.readouterr().err


def test_no_variant_is_listed_twice() -> None:
    listed = [(stem, *sorted(defines.items())) for stem, defines in variants()]
    assert len(listed) == len(set(listed))


def test_the_kernels_that_gpu_tests_launch_compile_without_a_gpu() -> None:
    compiler = Compiler("sm_90a", sources=Path(__file__).parent / "gpu")
    assert compiler.cubin("probe", {"SHIFT": 1}).image
