"""Token embeddings out of a table in its storage format; see `kernels.reference.embedding`."""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from kernels.array import Array
from kernels.formats import FORMATS, Format
from kernels.launch import Context
from kernels.loader import Variant
from kernels.packed import PackedMatrix
from kernels.repack import unpack_rows

THREADS = 256
NUMBERS_PER_THREAD = 4  # as in embedding.cu

_PARAMS = struct.Struct("<3Q 4i")


@dataclass(frozen=True, slots=True, eq=False)
class EmbeddingTable:
    """``num_rows`` rows of ``width`` numbers, as blocks in the order of the file."""

    format: Format
    num_rows: int
    width: int
    data: Array  # uint8 [num_rows, row_bytes]


def variants() -> list[Variant]:
    return [("embedding", {"FORMAT": name}) for name in FORMATS]


def embed(context: Context, token_ids: Array, table: EmbeddingTable | PackedMatrix, *, out: Array) -> None:
    """Rows ``token_ids`` [T] int32 of ``table`` into ``out`` [T, H] float32.

    An id that is none (-1 of a padded token, or where nothing could be drawn) gives some row. The matrix of an output
    head can be the table.
    """
    if isinstance(table, PackedMatrix):
        unpack_rows(context, table, token_ids, out=out)
    else:
        _rows(context, token_ids, table, out, adds=False)


def embed_positions(
    context: Context,
    token_ids: Array,
    table: EmbeddingTable | PackedMatrix,
    positions: Array,
    position_table: EmbeddingTable,
    *,
    out: Array,
) -> None:
    """`embed` plus a learned embedding of each token's position (GPT-2); ``positions`` [T] int32."""
    embed(context, token_ids, table, out=out)
    _rows(context, positions, position_table, out, adds=True)


def _rows(context: Context, ids: Array, table: EmbeddingTable, out: Array, *, adds: bool) -> None:
    num_ids, width = out.shape
    assert width == table.width and out.dtype == np.float32 and ids.size == num_ids
    params = _PARAMS.pack(table.data.pointer, ids.pointer, out.pointer, num_ids, table.num_rows, width, adds)
    grid = (num_ids, -(-width // (THREADS * NUMBERS_PER_THREAD)))
    context.launch("embedding", "embedding_rows", grid, THREADS, params, FORMAT=table.format.name)
