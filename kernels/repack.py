"""GGUF blocks in staging memory -> packed matrices, and rows of packed matrices back to float32."""

from __future__ import annotations

import struct

import numpy as np

from kernels.array import Array, pointer_of
from kernels.formats import FORMATS, Format
from kernels.launch import Context
from kernels.loader import Variant
from kernels.packed import FORMAT_IDS, PackedMatrix

_REPACK = struct.Struct("<4Q 3q 9i 4x")
_UNPACK = struct.Struct("<3Q 5i 4x")
_UNPACK_THREADS = 128

FIT_WIDEST = ("Q4_0", "Q5_0", "Q8_0")
"""Formats of integers times a scale for each 32: all are `WIDEST`'s numbers too, bit for bit."""
WIDEST = FORMATS["Q8_0"]


def variants() -> list[Variant]:
    own = ((FORMATS[name], FORMATS[name]) for name in FORMAT_IDS)
    widened = ((FORMATS[name], WIDEST) for name in FIT_WIDEST if FORMATS[name] is not WIDEST)
    return [variant_for(*formats) for formats in (*own, *widened)]


def variant_for(source: Format, packed: Format) -> tuple[str, dict[str, int | str]]:
    """What repacks ``source`` blocks to a ``packed`` matrix."""
    defines: dict[str, int | str] = {"FORMAT": FORMAT_IDS[packed.name]}
    return "repack", defines if source is packed else defines | {"SOURCE": FORMAT_IDS[source.name]}


def repack_rows(
    context: Context,
    source: Array,
    source_format: Format,
    matrix: PackedMatrix,
    *,
    first_row: int,
    num_rows: int,
    rows_per_expert: int,
    row_offset: int,
    gated_rows: int,
    part: int,
    not_finite: Array,
) -> None:
    """Put rows ``first_row:first_row + num_rows`` of a tensor (its experts one after the other, ``rows_per_expert``
    each) into ``matrix``, from ``source`` uint8 [num_rows * row_bytes]: of its own format, or of one that fits it.

    They go to the matrix's rows from ``row_offset`` on. With ``gated_rows`` F the rows of a gate and of an up
    projection alternate in eights: of F gate rows, then F up rows (``part`` 0), or of one of them (``part`` 0 or 1).
    ``not_finite`` [1] int32 becomes 1 if a number is NaN or infinite.
    """
    row_bytes = source_format.row_bytes(matrix.width)
    params = _REPACK.pack(
        source.pointer, matrix.packed.pointer, pointer_of(matrix.base), not_finite.pointer,
        row_bytes, matrix.expert_bytes, first_row, num_rows, rows_per_expert, matrix.num_rows, matrix.width,
        matrix.num_chunks, matrix.num_units, row_offset, gated_rows, part,
    )  # fmt: skip
    grid = -(-num_rows * matrix.num_chunks * 4 // 256)
    stem, defines = variant_for(source_format, matrix.format)
    context.launch(stem, "repack_rows", grid, 256, params, **defines)  # type: ignore[arg-type]


def unpack_rows(context: Context, matrix: PackedMatrix, rows: Array | None, *, out: Array, adds: bool = False) -> None:
    """``rows`` [T] int32 of ``matrix`` (None: its first ones) into ``out`` [T, K] float32, exact as in the file.

    A number that is no row stands for the nearest one. ``adds`` to what ``out`` holds.
    """
    num_rows, width = out.shape
    assert width == matrix.width and out.dtype == np.float32 and (rows is None or rows.size == num_rows)
    params = _UNPACK.pack(
        matrix.packed.pointer, pointer_of(rows), out.pointer,
        num_rows, matrix.num_rows, width, matrix.num_units, adds,
    )  # fmt: skip
    grid = -(-num_rows * matrix.num_chunks * 4 // _UNPACK_THREADS)
    context.launch("repack", "unpack_rows", grid, _UNPACK_THREADS, params, FORMAT=FORMAT_IDS[matrix.format.name])
