"""What turns one step into another one without the host; see `kernels.reference.decode_step`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.batch import SAMPLING_ROW, Step, view
from kernels.decode_rows import DecodeRows
from kernels.runtime.compiler import Variant
from kernels.runtime.cuda_constants import declare_constants
from kernels.runtime.cuda_struct import CudaStruct, Int32, Pointer
from kernels.runtime.device_array import DeviceArray
from kernels.runtime.launcher import Context

_SOURCE = "decode_step/decode_step"
_THREADS = 1024
_SELECT_THREADS = 256

declare_constants("decode_step/decode_step.cu", THREADS=_THREADS, SELECT_THREADS=_SELECT_THREADS)


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


class SelectStepParams(CudaStruct, source=_SOURCE):
    """What decode_step_select is given."""

    rows: Pointer  # [num_rows] int32 tokens of the step; all others are int32, too
    token_ids: Pointer  # [num_tokens]
    positions: Pointer  # [num_tokens]
    slots: Pointer  # [num_tokens] KV slots
    sequence_rows: Pointer  # [num_tokens]
    sequence_lengths: Pointer  # [num_sequences]
    block_tables: Pointer  # [num_sequences, max_blocks]
    selected: Pointer  # [7 * num_rows + 1]
    selected_tables: Pointer  # [num_rows, max_blocks]
    num_rows: Int32
    max_blocks: Int32


class SelectRowsParams(CudaStruct, source=_SOURCE):
    """What decode_step_select_rows is given."""

    x: Pointer  # rows of row_words
    rows: Pointer  # [num_rows] int32 rows of x
    out: Pointer  # [num_rows, num_words]
    row_words: Int32  # of 16 bytes
    num_words: Int32  # of each row that are copied, from its beginning


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


def select_step(context: Context, step: Step[DeviceArray]) -> Step[DeviceArray]:
    """The step of the tokens in ``step.logit_rows``: a sequence for each, of those that the cache holds.

    The kernel launched next may not overlap this one.
    """
    num_rows, max_blocks = step.logit_rows.size, step.block_tables.shape[1]
    selected = context.scratch((7 * num_rows + 1,), np.int32)
    tables = context.scratch((num_rows, max_blocks), np.int32)
    params = SelectStepParams(
        rows=step.logit_rows.pointer,
        token_ids=step.token_ids.pointer,
        positions=step.positions.pointer,
        slots=step.slots.pointer,
        sequence_rows=step.sequence_rows.pointer,
        sequence_lengths=step.sequence_lengths.pointer,
        block_tables=step.block_tables.pointer,
        selected=selected.pointer,
        selected_tables=tables.pointer,
        num_rows=num_rows,
        max_blocks=max_blocks,
    )
    context.launch(_SOURCE, "decode_step_select", num_rows, _SELECT_THREADS, params)
    ids, positions, slots, rows, contexts, lengths = (
        view(selected, 4 * num_rows * number, (num_rows,), np.int32) for number in range(6)
    )
    return Step(
        token_ids=ids,
        positions=positions,
        slots=slots,
        sequence_rows=rows,
        query_starts=view(selected, 4 * num_rows * 6, (num_rows + 1,), np.int32),
        context_lengths=contexts,
        sequence_lengths=lengths,
        block_tables=tables,
        logit_rows=rows,
    )


def select_rows(context: Context, x: DeviceArray, rows: DeviceArray, num_columns: int) -> DeviceArray:
    """The first ``num_columns`` of some ``rows`` [R] int32 of ``x`` [T, W], as a new array of the same type."""
    item_bytes = x.dtype.itemsize
    row_bytes, num_bytes = x.shape[1] * item_bytes, num_columns * item_bytes
    assert row_bytes % 16 == 0 and num_bytes % 16 == 0, f"rows of {row_bytes} bytes, {num_bytes} of which are copied"
    out = context.scratch((rows.size, num_columns), x.dtype)
    params = SelectRowsParams(
        x=x.pointer, rows=rows.pointer, out=out.pointer, row_words=row_bytes // 16, num_words=num_bytes // 16
    )
    context.launch(_SOURCE, "decode_step_select_rows", rows.size, _SELECT_THREADS, params)
    return out


def copy_to_host(context: Context, source: DeviceArray, target: NDArray[Any]) -> None:
    """Put ``source`` into ``target``, an array of the same size in page-locked host memory."""
    assert target.flags.c_contiguous and source.nbytes == target.nbytes and source.nbytes % 4 == 0
    if source.nbytes:
        params = CopyParams(source=source.pointer, target=target.ctypes.data, num_words=source.nbytes // 4)
        context.launch(_SOURCE, "decode_step_copy_to_host", 1, _THREADS, params)
