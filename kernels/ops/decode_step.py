"""What turns one step into the next one without the host; see `kernels.reference.decode_step`."""

from __future__ import annotations

import struct
from typing import Any

from numpy.typing import NDArray

from kernels.batch import DecodeRows
from kernels.runtime.compiler import Variant
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context

_DECODE = struct.Struct("<14Q4i")  # DecodeParams in decode_step.cu
_RESOLVE = struct.Struct("<2Q2i")  # ResolveParams
_COPY = struct.Struct("<2Q2i")  # CopyParams
_THREADS = 1024


def variants() -> list[Variant]:
    """What of decode_step.cu is compiled."""
    return [("decode_step/decode_step", {})]


def begin_decode(context: Context, rows: DecodeRows, num_rows: int, block_tokens: int) -> None:
    """Make the first ``num_rows`` rows the next step.

    Rows that hold a sequence go on with the id they drew (an id of -1 counts as 0), then patches and updates of
    ``changes`` are applied, to any row, and forgotten, then slots of ``block_tokens`` a block are found.
    """
    capacity, max_blocks = rows.block_tables.shape
    assert num_rows <= capacity
    draws = rows.draws
    pointers = (
        rows.token_ids,
        rows.positions,
        rows.slots,
        rows.context_lengths,
        rows.sequence_lengths,
        rows.block_tables,
        draws.temperature,
        draws.top_k,
        draws.top_p,
        draws.min_p,
        draws.keys,
        draws.output_positions,
        rows.drawn,
        rows.changes,
    )
    params = _DECODE.pack(*(array.pointer for array in pointers), num_rows, max_blocks, block_tokens, 0)
    context.launch("decode_step/decode_step", "step_begin_decode", 1, _THREADS, params)


def resolve_tokens(context: Context, token_ids: DeviceArray, drawn: DeviceArray) -> None:
    """In ``token_ids`` [T], -1 - i becomes the id of draw i of the previous step, in ``drawn`` [N].

    An id of -1 there counts as 0.
    """
    params = _RESOLVE.pack(token_ids.pointer, drawn.pointer, token_ids.size, 0)
    context.launch("decode_step/decode_step", "step_resolve", 1, _THREADS, params)


def copy_to_host(context: Context, source: DeviceArray, target: NDArray[Any]) -> None:
    """Put ``source`` into ``target``, an array of the same size in page-locked host memory."""
    assert target.flags.c_contiguous and source.nbytes == target.nbytes and source.nbytes % 4 == 0
    if source.nbytes:
        params = _COPY.pack(source.pointer, target.ctypes.data, source.nbytes // 4, 0)
        context.launch("decode_step/decode_step", "step_copy_to_host", 1, _THREADS, params)
