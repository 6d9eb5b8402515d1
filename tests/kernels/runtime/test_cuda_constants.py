"""kernels.runtime.cuda_constants: what Python declares is what CUDA sees."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from pathlib import Path

import pytest

from kernels.errors import CompileFailed
from kernels.runtime import cuda_constants
from kernels.runtime.compiler import SOURCE_DIRECTORY, Compiler, read_source
from kernels.runtime.cuda_constants import declarations, declare_constants, declare_enum, declare_table, declare_traits

FILE = "common/bulk.cuh"  # nothing is declared for it


class Shape(Enum):
    ROUND = "no corners"
    SQUARE = "four corners"


@pytest.fixture(autouse=True)
def own_declarations(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(cuda_constants, "_DECLARED", {})
    yield


def declare_all() -> None:
    declare_constants(FILE, WIDTH=7, IS_WIDE=True)
    declare_enum(FILE, "Shape", [shape.name for shape in Shape])
    declare_traits(
        FILE,
        "Traits",
        {
            ("ROUND", 16): {"corners": 0, "shape": Shape.ROUND},
            ("SQUARE", 16): {"corners": 4, "shape": Shape.SQUARE},
        },
    )


def test_cuda_sees_a_table(tmp_path: Path) -> None:
    declare_table(FILE, "SQUARES", [0, 1, 4, 40000])
    declare_table(FILE, "SIGNED", [-3, 5])
    compile_claim(tmp_path, "SQUARES<>[3] == 40000 && SIGNED<>[0] == -3 && sizeof(SQUARES<>) == 8")


def compile_claim(folder: Path, claim: str) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="the CUDA packages are not installed")
    (folder / "claims.cu").write_text(f'#include "{SOURCE_DIRECTORY / FILE}"\nstatic_assert({claim});\n')
    assert Compiler("sm_90a", cache=folder, sources=folder).cubin("claims", {}).image


def test_cuda_sees_constants_enumerations_and_the_rows_of_a_table(tmp_path: Path) -> None:
    declare_all()
    compile_claim(tmp_path, "WIDTH == 7 && IS_WIDE && ROUND == 0 && SQUARE == 1")
    compile_claim(tmp_path, "Traits<SQUARE, 16>::corners == 4 && Traits<SQUARE, 16>::shape == SQUARE")
    compile_claim(tmp_path, "Traits<ROUND, 16>::corners == 0 && Traits<ROUND, 16>::shape == ROUND")


@pytest.mark.parametrize("claim", ["WIDTH == 8", "Traits<ROUND, 32>::corners == 0", "DEPTH == 7"])
def test_another_value_a_missing_row_and_a_missing_constant_are_compile_errors(tmp_path: Path, claim: str) -> None:
    declare_all()
    with pytest.raises(CompileFailed, match=r"claims\.cu"):
        compile_claim(tmp_path, claim)


def test_declarations_stand_in_front_of_their_file_alone() -> None:
    declare_constants(FILE, WIDTH=7)
    assert declarations(FILE) == ["constexpr int WIDTH = 7;"]
    assert declarations("common/common.cuh") == []
    lines = read_source(SOURCE_DIRECTORY / "matmul" / "matmul_tiled.cu").splitlines()
    at = lines.index("constexpr int WIDTH = 7;")
    assert lines.count("constexpr int WIDTH = 7;") == 1
    assert lines[at + 1] == '#line 1 "bulk.cuh"'


def test_another_value_is_another_cubin(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="the CUDA packages are not installed")
    for width in (7, 8):
        cuda_constants._DECLARED.clear()
        declare_constants(FILE, WIDTH=width)
        compile_claim(tmp_path, f"WIDTH == {width}")
    assert len(list(tmp_path.glob("*.cubin"))) == 2
