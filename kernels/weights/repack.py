"""GGUF blocks in staging memory -> packed matrices, and rows of packed matrices back to float32."""

from __future__ import annotations

import msgspec
import numpy as np

from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_struct import CudaStruct, Float32, Int32, Int64, Pointer
from kernels.runtime.device_array import DeviceArray, pointer_of
from kernels.runtime.launcher import Context
from kernels.weights.formats import FORMATS, WIDEST, Format
from kernels.weights.packed import MatrixParams, PackedMatrix

_UNPACK_THREADS = 128


class PlacementParams(CudaStruct, source="repack/repack"):
    """A `Placement`."""

    rows_per_expert: Int32
    row_offset: Int32
    gated_rows: Int32
    begins_with_up: Int32


class RepackParams(CudaStruct, source="repack/repack"):
    """What repack_rows is given."""

    source: Pointer  # [num_rows, row_bytes] uint8: the rows from first_row on
    matrix: MatrixParams
    not_finite: Pointer  # [1] int32
    row_bytes: Int64
    first_row: Int64  # over all experts
    num_rows: Int32
    placement: PlacementParams


class UnpackParams(CudaStruct, source="repack/repack"):
    """What unpack_rows is given."""

    packed: Pointer  # uint8
    rows: Pointer  # [num_rows] int32 rows of the matrix; null: from 0 on
    out: Pointer  # [num_rows, width] float32
    matrix_rows: Int32
    width: Int32
    num_units: Int32
    adds: Int32
    scale: Float32


class Placement(msgspec.Struct, frozen=True):
    """Where a tensor's rows go in a packed matrix: ``rows_per_expert`` of each expert, to rows from ``row_offset`` on.

    With ``gated_rows`` F the rows of a gate and of an up projection alternate in eights: of F gate rows, then F up
    rows, or of one of them; the tensor ``begins_with_up`` if it has no gates.
    """

    rows_per_expert: int
    row_offset: int = 0
    gated_rows: int = 0
    begins_with_up: bool = False


def variants() -> list[Variant]:
    """What of repack.cu is compiled: every format as it is, and those that fit another."""
    own = ((format_, format_) for format_ in FORMATS.values())
    widened = ((format_, WIDEST) for format_ in FORMATS.values() if format_.fits_widest and format_ is not WIDEST)
    return [variant_for(*formats) for formats in (*own, *widened)]


def variant_for(source: Format, packed: Format) -> tuple[str, dict[str, int | str]]:
    """What repacks ``source`` blocks to a ``packed`` matrix."""
    defines: dict[str, int | str] = {"FORMAT": packed.name}
    return "repack/repack", defines if source is packed else defines | {"SOURCE": source.name}


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
    params = RepackParams(
        source=source.pointer,
        matrix=matrix.params,
        not_finite=not_finite.pointer,
        row_bytes=source_format.row_bytes(matrix.width),
        first_row=first_row,
        num_rows=num_rows,
        placement=PlacementParams(
            rows_per_expert=placement.rows_per_expert,
            row_offset=placement.row_offset,
            gated_rows=placement.gated_rows,
            begins_with_up=placement.begins_with_up,
        ),
    )
    grid = _grid(-(-num_rows * matrix.num_chunks * 4 // 256))
    file, defines = variant_for(source_format, matrix.format)
    context.launch(file, "repack_rows", grid, 256, params, **defines)  # type: ignore[arg-type]


def _grid(num_blocks: int) -> int:
    """Up to an eighth more, which find no rows: each kind of launch is prepared once, and slices have all lengths."""
    step = 1 << max(0, num_blocks.bit_length() - 4)
    return -(-num_blocks // step) * step


def unpack_rows(
    context: Context,
    matrix: PackedMatrix,
    rows: DeviceArray | None,
    *,
    out: DeviceArray,
    adds: bool = False,
    scale: float = 1.0,
) -> None:
    """``rows`` [T] int32 of ``matrix`` (None: its first ones), times ``scale``, into ``out`` [T, K] float32.

    The numbers are exactly those of the file. A number that is no row stands for the nearest one. ``adds`` to what
    ``out`` holds.
    """
    num_rows, width = out.shape
    assert width == matrix.width and out.dtype == np.float32 and (rows is None or rows.size == num_rows)
    params = UnpackParams(
        packed=matrix.packed.pointer,
        rows=pointer_of(rows),
        out=out.pointer,
        matrix_rows=matrix.num_rows,
        width=width,
        num_units=matrix.num_units,
        adds=adds,
        scale=scale,
    )
    grid = num_rows, -(-width // (2 * _UNPACK_THREADS)), 1
    context.launch("repack/repack", "unpack_rows", grid, _UNPACK_THREADS, params, FORMAT=matrix.format.name)
