"""kernels.ops.matmul: the kinds of epilogue, in Python and in CUDA. Needs no GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels.errors import CompileFailed
from kernels.ops.matmul_params import Epilogue
from kernels.runtime import cuda_constants
from kernels.runtime.compiler import Compiler
from kernels.runtime.cuda_constants import declarations, declare_enum

HEADER = "matmul/matmul_epilogue.cuh"


def test_cuda_has_the_kinds_in_the_same_order() -> None:
    [line] = declarations(HEADER)
    names = line.partition("{ ")[2].removesuffix(" };").split(", ")
    assert names == [*(kind.name for kind in sorted(Epilogue)), "NUM_EPILOGUES"]


@pytest.mark.parametrize("source", ["matmul/matmul", "matmul/matmul_tiled"])
def test_a_kind_that_the_kernels_do_not_know_does_not_compile(
    source: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="the CUDA packages are not installed")
    monkeypatch.setitem(cuda_constants._DECLARED, HEADER, [])
    declare_enum(HEADER, "EpilogueKind", [*(kind.name for kind in Epilogue), "SQUARED_RELU", "NUM_EPILOGUES"])
    with pytest.raises(CompileFailed, match="Epilogue must say what a new kind does"):
        Compiler("sm_80", cache=tmp_path).cubin(source, {"FORMAT": "Q8_0"})
