"""kernels.weights.packed: what packed matrices take, as Python and as the kernels count it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from kernels.ops.matmul_tuning import MAX_FEW_WARPS, MAX_NORMED_WIDTH
from kernels.runtime.compiler import SOURCE_DIRECTORY, Compiler
from kernels.weights.formats import FORMATS
from kernels.weights.packed import (
    BLOCK_ROWS,
    FORMAT_IDS,
    MAX_SEGMENTS,
    READY_CHUNKS,
    few_ring_bytes,
    packed_bytes,
    unit_bytes,
    unit_chunks,
)

DEQUANT = SOURCE_DIRECTORY / "common" / "dequant.cuh"


@pytest.mark.parametrize("name", FORMATS)
def test_a_packed_matrix_takes_what_it_takes_in_the_file_but_for_6_bit_scales(name: str) -> None:
    num_rows, width = 2 * BLOCK_ROWS, 3 * 256
    scale_bytes = num_rows * 3 * 4 if name in ("Q4_K", "Q5_K") else 0  # of 16 scales a super-block: 16 bytes for 12
    assert packed_bytes(FORMATS[name], num_rows, width) == num_rows * FORMATS[name].row_bytes(width) + scale_bytes


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_padded_to_blocks_and_columns_to_units(name: str) -> None:
    format_ = FORMATS[name]
    unit_width = 64 * unit_chunks(format_)
    assert unit_width % format_.block_elements == 0
    one = packed_bytes(format_, BLOCK_ROWS, unit_width)
    assert one == 4 * unit_bytes(format_) and unit_bytes(format_) % 16 == 0  # units are loaded 16 bytes at a time
    assert [packed_bytes(format_, num_rows, unit_width) // one for num_rows in (1, 64, 65, 128, 129)] == [1, 1, 2, 2, 3]
    assert packed_bytes(format_, 1, unit_width + format_.block_elements) == 2 * one


def test_the_kernels_know_the_formats_by_the_same_numbers() -> None:
    [names] = re.findall(r"enum Format \{(.*?)\}", DEQUANT.read_text())
    assert {name.strip(): number for number, name in enumerate(names.split(","))} == FORMAT_IDS


def test_the_kernels_count_the_same_bytes(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.nvrtc", reason="the CUDA packages are not installed")
    claims = [
        f"static_assert(Layout<{name}>::{member} == {value});"
        for name, format_ in FORMATS.items()
        for member, value in (("unit_bytes", unit_bytes(format_)), ("chunks", unit_chunks(format_)))
    ]
    claims += [
        f"static_assert(2 * FEW_GROUP<{name}> * Layout<{name}>::unit_bytes == {few_ring_bytes(format_)});"
        for name, format_ in FORMATS.items()
    ]
    claims += [
        f"static_assert(MAX_SEGMENTS == {MAX_SEGMENTS} && READY_CHUNKS == {READY_CHUNKS});",
        f"static_assert(MAX_FEW_WARPS == {MAX_FEW_WARPS} && ROW_QUADS * PART_STEP == {MAX_NORMED_WIDTH});",
    ]
    (tmp_path / "claims.cu").write_text(
        "\n".join([f'#include "{SOURCE_DIRECTORY / "matmul" / "matmul.cuh"}"', *claims])
    )
    assert Compiler("sm_90a", cache=tmp_path, sources=tmp_path).cubin("claims", {"FORMAT": 0}).image
