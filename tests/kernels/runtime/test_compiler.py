"""kernels.runtime.compiler, which needs no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("cuda.bindings.nvrtc", reason="the CUDA packages are not installed")

import kernels.runtime.compiler
from kernels.errors import CompileFailed
from kernels.runtime.compiler import Compiler, architecture, cache_directory, read_source


@pytest.fixture
def compiler(sources: Path, tmp_path: Path) -> Compiler:
    return Compiler("sm_80", cache=tmp_path / "cache", sources=sources)


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Grows with every file that is compiled rather than found."""
    seen: list[str] = []
    compile_ = kernels.runtime.compiler._compile

    def counted(source: str, text: str, options: tuple[str, ...]) -> kernels.runtime.compiler.Cubin:
        seen.append(source)
        return compile_(source, text, options)

    monkeypatch.setattr(kernels.runtime.compiler, "_compile", counted)
    return seen


def test_includes_come_in_once_and_errors_name_their_own_line(sources: Path, tmp_path: Path) -> None:
    text = read_source(sources / "fill.cu")
    assert text.count("float deep()") == text.count("float part()") == 1
    assert "#include" not in text and "#pragma once" not in text
    (sources / "deep.cuh").write_text("\n\n__device__ float deep() { return wrong; }\n")
    with pytest.raises(CompileFailed, match=r'(?s)fill\.cu.*AMOUNT=2.*deep\.cuh\(3\): error: identifier "wrong"'):
        Compiler("sm_80", cache=tmp_path, sources=sources).cubin("fill", {"AMOUNT": 2})
    (sources / "deep.cuh").write_text("__device__ float deep() { return 1.0f; }\n")
    with pytest.raises(CompileFailed, match=r'fill\.cu\(4\): error: identifier "AMOUNT"'):
        Compiler("sm_80", cache=tmp_path, sources=sources).cubin("fill", {})


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
    Compiler("sm_80", cache=tmp_path / "cache", sources=sources).cubin("fill", {"AMOUNT": 1})
    assert len(compilations) == 4


def test_a_file_is_read_once_for_all_that_it_is_compiled_with(
    compiler: Compiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(kernels.runtime.compiler, "read_source", lambda path: (read.append(path), read_source(path))[1])
    for amount in (1, 2, 1):
        compiler.cubin("fill", {"AMOUNT": amount})
    assert len(read) == 1


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


def test_a_user_without_a_home_has_no_place_for_the_cache_unless_one_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whom a container gives no name and no HOME."""
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.getuid", lambda: 2**31 - 2)
    assert cache_directory() == Path("/.cache/orcd/kernels")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_directory() == Path("/cache/orcd/kernels")


def test_hopper_is_compiled_for_with_its_own_features() -> None:
    assert [architecture(8, 0), architecture(9, 0), architecture(12, 0)] == ["sm_80", "sm_90a", "sm_120"]


def test_the_kernels_that_gpu_tests_launch_compile_without_a_gpu() -> None:
    compiler = Compiler("sm_90a", sources=Path(__file__).parents[1])
    assert compiler.cubin("probe", {"SHIFT": 1}).image
