"""One step's work as flat arrays: NumPy arrays on the CPU, views of fixed device buffers on CUDA.

A step of which every sequence only decodes leaves on the device all that the next one needs: the op `begin_decode`
goes on from there. What the host has to say (who came, who left, new blocks) goes up as changes (`write_changes`). Any
other step goes up whole (`pack`), with token ids that the host does not know yet given by the draw that makes them (the
op `resolve_tokens`).
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import DTypeLike, NDArray

from kernels.runtime.device_array import DeviceArray

AnyArray = Any
"""A NumPy array or a `kernels.runtime.device_array.DeviceArray`, contiguous."""

_PATCH = struct.Struct("<Qq4i3f4x")

PATCH = np.dtype(
    [
        ("key", np.uint64),
        ("output_position", np.int64),
        ("row", np.int32),
        ("token_id", np.int32),
        ("position", np.int32),
        ("top_k", np.int32),
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("min_p", np.float32),
        ("padding", np.int32),
    ]
)
"""How a row of `DecodeRows` goes on, where that is not "with the token it drew": ``token_id`` -1 - i is what draw i of
the previous step gave; ``position`` -1 empties the row."""

UPDATE = np.dtype([("entry", np.int32), ("block_id", np.int32)])
"""A new entry of ``block_tables``, which counts as one dimension."""

COUNTS_BYTES = 16
"""What ``changes`` begin with: how many patches, how many updates, 0, 0, all int32."""
_ALIGNMENT = 16


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """The tokens of one step, sequence after sequence; prefill chunk and decode differ only in their count.

    ``T`` tokens of ``S`` sequences; sequence ``s`` owns tokens ``query_starts[s]:query_starts[s + 1]``, its last
    ones: after the step its cache holds ``context_lengths[s]`` tokens, in the blocks of ``block_tables[s]``. All int32.

    A CUDA graph runs a step padded to its bucket, R = T = S: padded rows have token id 0, position -1, slot -1 and
    context and sequence length 0.
    """

    token_ids: AnyArray  # [T]
    positions: AnyArray  # [T] position in the sequence
    slots: AnyArray  # [T] where the token's K and V go: block_id * block_tokens + offset
    sequence_rows: AnyArray  # [T] which row of the arrays of sequences below is the token's
    query_starts: AnyArray  # [S + 1]
    context_lengths: AnyArray  # [S]
    sequence_lengths: AnyArray  # [S] tokens that are known of the sequence: those computed and those still to come
    block_tables: AnyArray  # [S, max_blocks], unused entries are not read
    logit_rows: AnyArray  # [R] tokens whose next-token logits are wanted


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """How R tokens are drawn; see `kernels.reference.sampling.sample`."""

    temperature: AnyArray  # [R] float32
    top_k: AnyArray  # [R] int32
    top_p: AnyArray  # [R] float32
    min_p: AnyArray  # [R] float32
    keys: AnyArray  # [R] uint64
    output_positions: AnyArray  # [R] int64

    def first(self, count: int) -> Draws:
        """The first ``count`` of them."""
        return Draws(*(first(getattr(self, name), count) for name in self.__slots__))


@dataclass(frozen=True, slots=True, eq=False)
class DecodeRows:
    """What is on the device of up to ``N`` sequences that decode: each has a row, and empty rows lie between them."""

    token_ids: AnyArray  # [N] int32, like all but `draws` and `changes`
    positions: AnyArray  # [N] -1: the row is empty
    slots: AnyArray  # [N]
    context_lengths: AnyArray  # [N]
    sequence_lengths: AnyArray  # [N]
    block_tables: AnyArray  # [N, max_blocks]
    drawn: AnyArray  # [N] ids that the last step drew, of any kind of step; -1 where logits were not finite
    counting: AnyArray  # [N + 1] 0, 1, 2 ...
    draws: Draws  # [N]
    changes: AnyArray  # bytes: counts of patches and of updates, two zeros; the patches; the updates

    def step(self, num_rows: int) -> Step:
        """The first ``num_rows`` rows as a step."""
        return Step(
            token_ids=first(self.token_ids, num_rows),
            positions=first(self.positions, num_rows),
            slots=first(self.slots, num_rows),
            sequence_rows=first(self.counting, num_rows),
            query_starts=first(self.counting, num_rows + 1),
            context_lengths=first(self.context_lengths, num_rows),
            sequence_lengths=first(self.sequence_lengths, num_rows),
            block_tables=first(self.block_tables, num_rows),
            logit_rows=first(self.counting, num_rows),
        )


class LayerCache(NamedTuple):
    """K and V of a layer for all sequences, in blocks; the layout is the device's (`Device.cache_array`)."""

    keys: AnyArray
    values: AnyArray


class Allocator(Protocol):
    """Gives out memory that stays: `kernels.runtime.memory.Arena`."""

    def allocate(self, shape: tuple[int, ...], dtype: DTypeLike) -> AnyArray:
        """An array with arbitrary contents."""


def allocate_rows(memory: Allocator, num_rows: int, max_blocks: int) -> DecodeRows:
    """Rows for ``num_rows`` sequences of at most ``max_blocks`` blocks.

    Before use ``counting`` must be filled in, and every row be emptied (`empty_patch`).
    """

    def ints(*shape: int) -> AnyArray:
        return memory.allocate(shape, np.int32)

    changes_bytes = COUNTS_BYTES + num_rows * PATCH.itemsize + num_rows * max_blocks * UPDATE.itemsize
    return DecodeRows(
        token_ids=ints(num_rows),
        positions=ints(num_rows),
        slots=ints(num_rows),
        context_lengths=ints(num_rows),
        sequence_lengths=ints(num_rows),
        block_tables=ints(num_rows, max_blocks),
        drawn=ints(num_rows),
        counting=ints(num_rows + 1),
        draws=Draws(
            temperature=memory.allocate((num_rows,), np.float32),
            top_k=ints(num_rows),
            top_p=memory.allocate((num_rows,), np.float32),
            min_p=memory.allocate((num_rows,), np.float32),
            keys=memory.allocate((num_rows,), np.uint64),
            output_positions=memory.allocate((num_rows,), np.int64),
        ),
        changes=memory.allocate((changes_bytes,), np.uint8),
    )


class Patch(NamedTuple):
    """The values of one `PATCH`, in its order."""

    key: int
    output_position: int
    row: int
    token_id: int
    position: int
    top_k: int
    temperature: float
    top_p: float
    min_p: float

    def pack(self) -> bytes:
        """Its bytes."""
        return _PATCH.pack(*self)


def empty_patch(row: int) -> bytes:
    """The bytes of a `PATCH` that empties ``row``."""
    return _PATCH.pack(0, 0, row, 0, -1, 0, 0.0, 1.0, 0.0)


def write_changes(
    patches: Collection[bytes], entries: Sequence[int], block_ids: Sequence[int], staging: NDArray[np.uint8]
) -> int:
    """Write what the op `begin_decode` reads from ``changes`` into ``staging``; returns the number of bytes.

    There is one patch a row at most; ``entries`` and ``block_ids`` are the columns of the updates, each entry once.
    """
    patches_end = COUNTS_BYTES + len(patches) * PATCH.itemsize
    end = patches_end + len(entries) * UPDATE.itemsize
    staging[:COUNTS_BYTES].view(np.int32)[:] = len(patches), len(entries), 0, 0
    staging[COUNTS_BYTES:patches_end] = np.frombuffer(b"".join(patches), np.uint8)
    updates = staging[patches_end:end].view(np.int32).reshape(-1, 2)
    updates[:, 0] = entries
    updates[:, 1] = block_ids
    return end


def pack(arrays: Mapping[str, NDArray[Any]], staging: NDArray[np.uint8]) -> tuple[int, dict[str, int]]:
    """Write ``arrays`` into ``staging`` one after the other; the number of bytes, and where each one starts."""
    offsets: dict[str, int] = {}
    end = 0
    for name, array in arrays.items():
        offsets[name] = end
        staging[end : end + array.nbytes].view(array.dtype)[:] = array.ravel()
        end += -(-array.nbytes // _ALIGNMENT) * _ALIGNMENT
    return end, offsets


def packed_bytes(sizes: Iterable[int]) -> int:
    """Bytes that `pack` needs at most for arrays of these sizes in bytes."""
    return sum(-(-size // _ALIGNMENT) * _ALIGNMENT for size in sizes)


def view(memory: AnyArray, offset: int, shape: tuple[int, ...], dtype: DTypeLike) -> AnyArray:
    """An array inside of ``memory``, ``offset`` bytes from its start."""
    if isinstance(memory, np.ndarray):
        num_bytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return memory.reshape(-1).view(np.uint8)[offset : offset + num_bytes].view(dtype).reshape(shape)
    return DeviceArray(memory.pointer + offset, shape, np.dtype(dtype))


def first(array: AnyArray, count: int) -> AnyArray:
    """The first ``count`` rows."""
    return array[:count] if isinstance(array, np.ndarray) else array.first(count)


def dry_step(num_tokens: int, num_sequences: int, num_logits: int, max_blocks: int) -> Step:
    """A step of these sizes without memory: for running a model's `forward` on a dry context."""

    def ints(*shape: int) -> DeviceArray:
        return DeviceArray(0, shape, np.dtype(np.int32))

    return Step(
        token_ids=ints(num_tokens),
        positions=ints(num_tokens),
        slots=ints(num_tokens),
        sequence_rows=ints(num_tokens),
        query_starts=ints(num_sequences + 1),
        context_lengths=ints(num_sequences),
        sequence_lengths=ints(num_sequences),
        block_tables=ints(num_sequences, max_blocks),
        logit_rows=ints(num_logits),
    )
