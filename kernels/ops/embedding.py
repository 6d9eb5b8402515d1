"""Token embeddings out of a packed matrix; see `kernels.reference.embedding`."""

from __future__ import annotations

from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context
from kernels.weights.packed import PackedMatrix
from kernels.weights.repack import unpack_rows


def embed(
    context: Context, token_ids: DeviceArray, table: PackedMatrix, *, scale: float = 1.0, out: DeviceArray
) -> None:
    """Rows ``token_ids`` [T] int32 of ``table``, times ``scale``, into ``out`` [T, H] float32.

    An id that is none (-1 of a padded token, or where nothing could be drawn) gives some row.
    """
    unpack_rows(context, table, token_ids, scale=scale, out=out)


def embed_positions(
    context: Context,
    token_ids: DeviceArray,
    table: PackedMatrix,
    positions: DeviceArray,
    position_table: PackedMatrix,
    *,
    out: DeviceArray,
) -> None:
    """`embed` plus a learned embedding of each token's position (GPT-2); ``positions`` [T] int32."""
    unpack_rows(context, table, token_ids, out=out)
    unpack_rows(context, position_table, positions, out=out, adds=True)
