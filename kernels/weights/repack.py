"""GGUF blocks in staging memory -> packed matrices, and rows of packed matrices back to float32."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from kernels.runtime.compiler import Variant
from kernels.runtime.device_array import DeviceArray, pointer_of
from kernels.runtime.launcher import Context
from kernels.weights.formats import FORMATS, Format
from kernels.weights.packed import FORMAT_IDS, PackedMatrix

_REPACK = struct.Struct("<4Q 3q 9i 4x")
_UNPACK = struct.Struct("<3Q 5i 4x")
_UNPACK_THREADS = 128

FIT_WIDEST = ("Q4_0", "Q5_0", "Q8_0")
"""Formats of integers times a scale for each 32: all are `WIDEST`'s numbers too, bit for bit."""
WIDEST = FORMATS["Q8_0"]


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a tensor's rows go in a packed matrix: ``rows_per_expert`` of each expert, to rows from ``row_offset`` on.

    With ``gated_rows`` F the rows of a gate and of an up projection alternate in eights: of F gate rows, then F up rows
    (``part`` 0), or of one of them (``part`` 0 or 1).
    """

    rows_per_expert: int
    row_offset: int = 0
    gated_rows: int = 0
    part: int = 0


def variants() -> list[Variant]:
    """What of repack.cu is compiled: every format as it is, and those that fit another."""
    own = ((FORMATS[name], FORMATS[name]) for name in FORMAT_IDS)
    widened = ((FORMATS[name], WIDEST) for name in FIT_WIDEST if FORMATS[name] is not WIDEST)
    return [variant_for(*formats) for formats in (*own, *widened)]


def variant_for(source: Format, packed: Format) -> tuple[str, dict[str, int | str]]:
    """What repacks ``source`` blocks to a ``packed`` matrix."""
    defines: dict[str, int | str] = {"FORMAT": FORMAT_IDS[packed.name]}
    return "repack/repack", defines if source is packed else defines | {"SOURCE": FORMAT_IDS[source.name]}


def repack_rows(
    context: Context,
    source: DeviceArray,
    source_format: Format,
    matrix: PackedMatrix,
    placement: Placement,
    *,
    first_row: int,
    num_rows: int,
    not_finite: DeviceArray,
) -> None:
    """Put some rows of a tensor (its experts one after the other) into ``matrix``.

    Rows ``first_row:first_row + num_rows`` come from ``source`` uint8 [num_rows * row_bytes], in the matrix's own
    format or in one that fits it. ``not_finite`` [1] int32 becomes 1 if a number is NaN or infinite.
    """
    row_bytes = source_format.row_bytes(matrix.width)
    params = _REPACK.pack(
        source.pointer, matrix.packed.pointer, pointer_of(matrix.base), not_finite.pointer,
        row_bytes, matrix.expert_bytes, first_row, num_rows, placement.rows_per_expert, matrix.num_rows, matrix.width,
        matrix.num_chunks, matrix.num_units, placement.row_offset, placement.gated_rows, placement.part,
    )  # fmt: skip
    grid = -(-num_rows * matrix.num_chunks * 4 // 256)
    file, defines = variant_for(source_format, matrix.format)
    context.launch(file, "repack_rows", grid, 256, params, **defines)  # type: ignore[arg-type]


def unpack_rows(
    context: Context, matrix: PackedMatrix, rows: DeviceArray | None, *, out: DeviceArray, adds: bool = False
) -> None:
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
    context.launch("repack/repack", "unpack_rows", grid, _UNPACK_THREADS, params, FORMAT=FORMAT_IDS[matrix.format.name])
