"""kernels.weights.packed: what packed matrices take, as Python and as the kernels count it."""

from __future__ import annotations

from pathlib import Path

import pytest

from kernels.ops.matmul_params import Epilogue
from kernels.ops.matmul_tuning import MAX_NORMED_WIDTH
from kernels.runtime.compiler import SOURCE_DIRECTORY, Compiler
from kernels.weights.formats import FORMATS
from kernels.weights.packed import BLOCK_ROWS, MAX_PARTITIONS, READY_CHUNKS, RECIPROCAL_BITS, packed_bytes

# Of a super-block, what scales that the file has in 4 or 6 bits and signs that it has in 7 of 8 take beyond that.
MORE_BYTES = {"Q4_K": 4, "Q5_K": 4, "Q3_K": 4, "IQ4_XS": 2, "IQ2_XXS": 8, "IQ2_XS": 8, "IQ3_XXS": 8, "IQ3_S": 4}


@pytest.mark.parametrize("name", FORMATS)
def test_a_packed_matrix_takes_what_it_takes_in_the_file_but_for_scales_and_signs_of_few_bits(name: str) -> None:
    num_rows, width = 2 * BLOCK_ROWS, 3 * 256
    more_bytes = num_rows * 3 * MORE_BYTES.get(name, 0)
    assert packed_bytes(FORMATS[name], num_rows, width) == num_rows * FORMATS[name].row_bytes(width) + more_bytes


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_padded_to_blocks_and_columns_to_units(name: str) -> None:
    format_ = FORMATS[name]
    unit_width = 64 * format_.unit_chunks
    assert unit_width % format_.block_elements == 0
    one = packed_bytes(format_, BLOCK_ROWS, unit_width)
    assert one == 4 * format_.unit_bytes and format_.unit_bytes % 16 == 0  # units are loaded 16 bytes at a time
    assert [packed_bytes(format_, num_rows, unit_width) // one for num_rows in (1, 64, 65, 128, 129)] == [1, 1, 2, 2, 3]
    assert packed_bytes(format_, 1, unit_width + format_.block_elements) == 2 * one


def test_the_kernels_have_the_same_table_of_formats(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="the CUDA packages are not installed")
    claims = []
    for name, format_ in FORMATS.items():
        members = {
            "block_elements": format_.block_elements,
            "block_bytes": format_.block_bytes,
            "code_bytes": format_.code_bytes,
            "high_bytes": format_.high_bytes,
            "scale_bytes": format_.scaling.scale_bytes,
            "super_bytes": format_.scaling.super_bytes,
            "has_row_base": int(format_.has_row_base),
            "chunks": format_.unit_chunks,
            "unit_bytes": format_.unit_bytes,
            "block_warps": format_.block_warps,
        }
        claims += [f"static_assert(Layout<{name}>::{member} == {value});" for member, value in members.items()]
        claims += [
            f"static_assert(2 * Layout<{name}>::units_per_copy == {format_.ring_units});",
            f"static_assert(Staged<{name}>::bytes == 32 * {format_.lane_bytes});",
        ]
        if format_.grid:
            claims.append(
                f"static_assert(Grid<{name}>::num_points * Grid<{name}>::point_bytes == {format_.grid_bytes});"
            )
    compile_claims(tmp_path, "common/dequant.cuh", claims)


def test_the_kernels_cut_products_by_the_same_constants(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="the CUDA packages are not installed")
    claims = [
        f"static_assert(MAX_PARTITIONS == {MAX_PARTITIONS} && READY_CHUNKS == {READY_CHUNKS});",
        f"static_assert(RECIPROCAL_BITS == {RECIPROCAL_BITS});",
        f"static_assert(ROW_QUADS * PARTITION_STEP == {MAX_NORMED_WIDTH});",
        *(f"static_assert({epilogue.name} == {epilogue.value});" for epilogue in Epilogue),
    ]
    compile_claims(tmp_path, "matmul/matmul_gemv.cuh", claims)


def compile_claims(folder: Path, file: str, claims: list[str]) -> None:
    """Raises `kernels.errors.CompileFailed` where one of them does not hold."""
    (folder / "claims.cu").write_text("\n".join([f'#include "{SOURCE_DIRECTORY / file}"', *claims]))
    assert Compiler("sm_90a", cache=folder, sources=folder).cubin("claims", {"FORMAT": "F32"}).image
