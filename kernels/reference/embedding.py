"""Token embeddings out of a table in its storage format."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kernels.reference.matmul import Matrix

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


def embed(token_ids: Int32, table: Matrix, *, scale: float = 1.0, out: Float32) -> None:
    """Rows ``token_ids`` [T] of ``table`` (V, H), times ``scale``, into ``out`` [T, H]."""
    np.multiply(table.rows(token_ids), np.float32(scale), out=out)


def embed_positions(token_ids: Int32, table: Matrix, positions: Int32, position_table: Matrix, *, out: Float32) -> None:
    """`embed` plus a learned embedding of each token's position (GPT-2); ``positions`` [T]."""
    out[:] = table.rows(token_ids)
    out += position_table.rows(positions)
