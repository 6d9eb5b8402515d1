"""What turns one step into the next one without the host; see `kernels.reference.decode_step`."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from kernels.batch import SAMPLING_ROW
from kernels.decode_rows import DecodeRows
from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_constants import declare_constants
from kernels.runtime.cuda_struct import CudaStruct, Int32, Pointer
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context

_SOURCE = "decode_step/decode_step"
_THREADS = 1024

declare_constants("decode_step/decode_step.cu", THREADS=_THREADS)


class RowStatesParams(CudaStruct, source=_SOURCE):
    """The states of rows."""

    slots: Pointer  # [capacity] int32; null: the model has no recurrent layers
    sources: Pointer  # [capacity] int32


class BeginParams(CudaStruct, source=_SOURCE):
    """What decode_step_begin is given."""

    token_ids: Pointer  # [capacity] int32, like all others but output_positions, sampling_rows and updates
    positions: Pointer  # [capacity]
    slots: Pointer  # [capacity] KV slots
    context_lengths: Pointer  # [capacity]
    sequence_lengths: Pointer  # [capacity]
    block_tables: Pointer  # [capacity, max_blocks]
    output_positions: Pointer  # [capacity] int64
    sampling_rows: Pointer  # [capacity, sampling_words] uint64
    drawn: Pointer  # [capacity]
    updates: Pointer  # bytes, see `kernels.decode_rows.DecodeRows`
    states: RowStatesParams
    num_rows: Int32
    max_blocks: Int32
    block_tokens: Int32
    sampling_words: Int32  # of 8 bytes, that a row of sampling_rows has


class ResolveParams(CudaStruct, source=_SOURCE):
    """What decode_step_resolve is given."""

    token_ids: Pointer  # [num_tokens] int32
    drawn: Pointer  # [capacity] int32
    num_tokens: Int32


class CopyParams(CudaStruct, source=_SOURCE):
    """What decode_step_copy_to_host is given."""

    source: Pointer  # device memory
    target: Pointer  # page-locked host memory
    num_words: Int32  # of 4 bytes


def variants() -> list[Variant]:
    """What of decode_step.cu is compiled."""
    return [(_SOURCE, {})]


def begin_decode(context: Context, rows: DecodeRows[DeviceArray], num_rows: int, block_tokens: int) -> None:
    """Make the first ``num_rows`` rows the next step.

    Rows that hold a sequence go on with the id they drew (an id of -1 counts as 0) and with their own state, then
    ``updates`` are applied, to any row, and forgotten, then KV slots of ``block_tokens`` a block are found.
    """
    capacity, max_blocks = rows.block_tables.shape
    assert num_rows <= capacity
    params = BeginParams(
        token_ids=rows.token_ids.pointer,
        positions=rows.positions.pointer,
        slots=rows.slots.pointer,
        context_lengths=rows.context_lengths.pointer,
        sequence_lengths=rows.sequence_lengths.pointer,
        block_tables=rows.block_tables.pointer,
        output_positions=rows.sampling.output_positions.pointer,
        sampling_rows=rows.sampling.rows.pointer,
        drawn=rows.drawn.pointer,
        updates=rows.updates.pointer,
        states=RowStatesParams(
            slots=rows.states.slots.pointer if rows.states else 0,
            sources=rows.states.sources.pointer if rows.states else 0,
        ),
        num_rows=num_rows,
        max_blocks=max_blocks,
        block_tokens=block_tokens,
        sampling_words=SAMPLING_ROW.itemsize // 8,
    )
    context.launch(_SOURCE, "decode_step_begin", 1, _THREADS, params)


def resolve_tokens(context: Context, token_ids: DeviceArray, drawn: DeviceArray) -> None:
    """What `kernels.batch.encode_token` made of draws of the previous step becomes their ids.

    ``token_ids`` [T] int32, ``drawn`` [N] int32 ids of the previous step, of which -1 counts as 0.
    """
    params = ResolveParams(token_ids=token_ids.pointer, drawn=drawn.pointer, num_tokens=token_ids.size)
    context.launch(_SOURCE, "decode_step_resolve", 1, _THREADS, params)


def copy_to_host(context: Context, source: DeviceArray, target: NDArray[Any]) -> None:
    """Put ``source`` into ``target``, an array of the same size in page-locked host memory."""
    assert target.flags.c_contiguous and source.nbytes == target.nbytes and source.nbytes % 4 == 0
    if source.nbytes:
        params = CopyParams(source=source.pointer, target=target.ctypes.data, num_words=source.nbytes // 4)
        context.launch(_SOURCE, "decode_step_copy_to_host", 1, _THREADS, params)
