"""Float16 copies of packed matrices: kernels for many tokens on Hopper multiply by them without unpacking anything.

The numbers are those that other kernels make of packed weights in registers. They lie chunk by chunk, so that so many
neighbouring rows of a chunk as a tile has are one piece, as Hopper's tensor cores read it from shared memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_struct import CudaStruct, Pointer
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.gpu_spec import GpuSpec
from kernels.runtime.launcher import Context
from kernels.runtime.memory import Arena
from kernels.weights.formats import CHUNK
from kernels.weights.packed import MatrixParams, PackedMatrix

UNPACKED_FORMATS = ("Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K")
"""What files of the mixtures Q4_K_M to Q8_0 hold. Others, but for those with `has_row_base`, only want testing."""

PADDED_ROWS = 128  # rows of a copy come in multiples of this
_UNPACK_THREADS, _UNPACK_ROWS = 128, 64


class UnpackParams(CudaStruct, source="matmul/matmul_unpack"):
    """What matmul_unpack is given."""

    matrix: MatrixParams
    out: Pointer  # [chunks, padded rows, CHUNK] float16, swizzled


IsCopied = Callable[[int, PackedMatrix], bool]
"""Whether a matrix has a copy: its number among those that are multiplied, as they are laid out, and the matrix."""


class HalfCopies(NamedTuple):
    """Where copies lie, and which matrices have one."""

    arena: Arena
    is_copied: IsCopied


def variants() -> list[Variant]:
    """What of matmul_unpack.cu is compiled."""
    return [_variant(name) for name in UNPACKED_FORMATS]


def _variant(format_name: str) -> Variant:
    return "matmul/matmul_unpack", {"FORMAT": format_name}


def can_unpack(gpu: GpuSpec, matrix: PackedMatrix) -> bool:
    """Whether `unpack` can make a copy of ``matrix``."""
    return gpu.has_wgmma and matrix.format.name in UNPACKED_FORMATS and matrix.num_experts == 1


def half_shape(matrix: PackedMatrix) -> tuple[int, int, int]:
    """The shape of a copy: [chunks of whole units, padded rows, CHUNK]."""
    padded_rows = -(-matrix.num_rows // PADDED_ROWS) * PADDED_ROWS
    return matrix.num_units * matrix.format.unit_chunks, padded_rows, CHUNK


def half_bytes(matrix: PackedMatrix) -> int:
    """Bytes of a copy."""
    num_chunks, num_rows, width = half_shape(matrix)
    return num_chunks * num_rows * width * np.dtype(np.float16).itemsize


def allocate_half(context: Context, arena: Arena, matrix: PackedMatrix) -> DeviceArray:
    """Room for a copy, and a note that `unpack` will be launched."""
    context.note_variant(*_variant(matrix.format.name))
    return arena.allocate(half_shape(matrix), np.float16)


def unpack(context: Context, matrix: PackedMatrix, out: DeviceArray) -> None:
    """The copy of ``matrix`` into ``out``, of `half_shape`."""
    num_chunks, num_rows, _ = out.shape
    row_blocks = num_rows // _UNPACK_ROWS
    parts = max(1, min(num_chunks // 4, 8 * context.gpu.num_sms // row_blocks))  # of the columns
    source, defines = _variant(matrix.format.name)
    context.launch(
        source,
        "matmul_unpack",
        (parts, row_blocks),
        _UNPACK_THREADS,
        UnpackParams(matrix=matrix.params, out=out.pointer),
        **defines,  # type: ignore[arg-type]
    )
