"""kernels.runtime.cuda_struct, which needs no GPU."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kernels import kernel_variants
from kernels.errors import CompileFailed
from kernels.runtime.compiler import SOURCE_DIRECTORY, Compiler
from kernels.runtime.cuda_struct import CudaStruct, Float32, Int32, Int64, Pointer, checks

SOURCE = """struct Norm { const float* weight; float epsilon; };
struct Rows { const float* x; int num_rows; Norm norm; long long stride; int last; };
extern "C" __global__ void rows(const __grid_constant__ Rows p) {}
"""


class Norm(CudaStruct, source="rows"):
    """As in SOURCE."""

    weight: Pointer  # [width] float32
    epsilon: Float32


class Rows(CudaStruct, source="rows"):
    """As in SOURCE."""

    x: Pointer  # [num_rows, width] float32
    num_rows: Int32
    norm: Norm
    stride: Int64
    last: Int32


def test_fields_are_packed_by_name_and_padded_as_in_cpp() -> None:
    params = Rows(last=True, stride=-1, norm=Norm(weight=7, epsilon=0.5), num_rows=-3, x=1 << 40)
    assert params == struct.pack("<Q i 4x Q f 4x q i 4x", 1 << 40, -3, 7, 0.5, -1, 1)
    assert type(params) is bytes and len(params) == Rows.layout.num_bytes
    assert {field.name: field.offset for field in Rows.layout.fields} == {
        "x": 0, "num_rows": 8, "norm": 16, "stride": 32, "last": 40,
    }  # fmt: skip


def test_a_field_that_is_missing_or_unknown_is_refused() -> None:
    with pytest.raises(TypeError, match=r"Norm\(\) missing .*'epsilon'"):
        Norm(weight=0)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"Norm\(\) got an unexpected .*'bias'"):
        Norm(weight=0, epsilon=0.0, bias=0)  # type: ignore[call-arg]


def test_what_is_slow_to_pack_is_not_declared() -> None:
    many = {f"field_{number}": Int32 for number in range(16)}
    with pytest.raises(AssertionError, match="Many has 16 fields"):
        type("Many", (CudaStruct,), {"__annotations__": many}, source="many")


@pytest.fixture
def compiler(tmp_path: Path) -> Compiler:
    pytest.importorskip("cuda.bindings.nvrtc", reason="the CUDA packages are not installed")
    return Compiler("sm_80", cache=tmp_path / "cache", sources=tmp_path)


def test_a_struct_that_is_as_declared_compiles(compiler: Compiler, tmp_path: Path) -> None:
    (tmp_path / "rows.cu").write_text(SOURCE)
    assert compiler.cubin("rows", {}).image


@pytest.mark.parametrize(
    ("there", "instead", "message"),
    [
        ("int num_rows", "int rows", "Rows.*num_rows"),
        ("int num_rows; Norm norm;", "Norm norm; int num_rows;", "Rows::num_rows is declared as field 1"),
        ("int num_rows", "float num_rows", "Rows::num_rows is declared int"),
        ("int num_rows", "unsigned num_rows", "Rows::num_rows is declared int"),
        ("const float* x", "long long x", "Rows::x is declared a pointer"),
        ("Rows { const float* x;", "Rows { Norm* other; const float* x;", "more elements than there are binding names"),
        ("int last;", "int last; long long more;", "Rows is declared with 48 bytes"),
        ("int last;", "int last, in_the_padding;", "more elements than there are binding names"),
        ("float epsilon;", "", "Norm.*epsilon"),
        ("float epsilon;", "double epsilon;", "Norm::epsilon is declared float"),
        ("struct Norm", "struct Other", "Norm"),
    ],
)
def test_a_struct_that_differs_does_not_compile_and_the_error_names_it(
    there: str, instead: str, message: str, compiler: Compiler, tmp_path: Path
) -> None:
    assert there in SOURCE
    (tmp_path / "rows.cu").write_text(SOURCE.replace(there, instead))
    with pytest.raises(CompileFailed, match=message):
        compiler.cubin("rows", {})


def test_every_declaration_is_checked_when_its_source_is_compiled() -> None:
    sources = {source for source, _ in kernel_variants.variants()}
    declared = [struct_ for struct_ in CudaStruct.declared if struct_.__module__.startswith("kernels.")]
    assert declared
    for struct_ in declared:
        layout = struct_.layout
        assert layout.source in sources and (SOURCE_DIRECTORY / f"{layout.source}.cu").is_file()
        assert f"sizeof({layout.name}) == {layout.num_bytes}" in checks(layout.source)
