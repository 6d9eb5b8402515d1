"""Which sequences of a step attend to a beginning that they share together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kernels.batch import PrefixGroups, view
from kernels.devices.protocol import is_gpu
from kernels.ops.attention_parts.prefix_attention import MAX_GROUPS
from kernels.ops.attention_plan import TILE_KEYS
from kernels.runtime.device_array import DeviceArray
from worker.engine.batch_builder import build_prefix_groups
from worker.engine.cache.prefix_tree import PrefixGroup, PrefixTree
from worker.engine.cuda.pinned_ring import UploadRing
from worker.engine.sequence import Chunk, Sequence
from worker.model.registry import Model

LEAST_BYTES = 64 << 20
"""Keys and values of a layer that need not be read: fewer are read sooner than two more kernels are run."""


def prefix_bytes(max_sequences: int) -> int:
    """Bytes of the groups of a step."""
    return MAX_GROUPS * 12 + max_sequences * 4


class PrefixGrouping:
    """Finds the groups of steps, and tells the device those of decode steps."""

    def __init__(self, model: Model, memory: DeviceArray, block_tokens: int, timeout_s: float) -> None:
        """``memory``: `prefix_bytes`."""
        device = model.device
        assert is_gpu(device)
        self._tree = PrefixTree(block_tokens, TILE_KEYS)
        self._least_tokens = LEAST_BYTES * model.config.num_layers / model.bytes_per_block(1)
        self._memory = memory
        self._uploads = UploadRing(device, memory.shape[0], timeout_s)
        self.has_sent = False
        """Whether decode steps have the groups that were sent last."""

    def groups_of(self, chunks: list[Chunk]) -> PrefixGroups[NDArray[np.int32]] | None:
        """Those of a step of ``chunks``; None: each sequence attends alone."""
        return self._groups({chunk.sequence: row for row, chunk in enumerate(chunks) if chunk.num_tokens == 1})

    def send(self, chunks: list[Chunk], rows: Iterable[int]) -> None:
        """Enqueue that the next decode steps have the groups of these sequences, which have these rows."""
        groups = self._groups({chunk.sequence: row for row, chunk in zip(rows, chunks, strict=True)})
        self.has_sent = groups is not None
        if groups is not None:
            staging = self._uploads.take()
            staging[:] = 0
            staged = prefixes_in(staging)
            staged.groups[: len(groups.groups)] = groups.groups
            staged.members[: len(groups.members)] = groups.members
            self._uploads.send(self._memory)

    def _groups(self, row_of: Mapping[Sequence, int]) -> PrefixGroups[NDArray[np.int32]] | None:
        if len({sequence.block_ids[0] for sequence in row_of}) == len(row_of):
            return None  # no two begin with the same block
        self._tree.update(row_of)
        groups = sorted(self._tree.groups(), key=_saved_tokens, reverse=True)[:MAX_GROUPS]
        return build_prefix_groups(groups, row_of) if sum(map(_saved_tokens, groups)) >= self._least_tokens else None


def prefixes_in(memory: Any) -> PrefixGroups[Any]:
    """The groups of decode steps in an array of `prefix_bytes`."""
    num_members = (memory.shape[0] - MAX_GROUPS * 12) // 4
    return PrefixGroups(
        view(memory, 0, (MAX_GROUPS, 3), np.int32), view(memory, MAX_GROUPS * 12, (num_members,), np.int32)
    )


def _saved_tokens(group: PrefixGroup) -> int:
    """Whose keys and values are read less."""
    return (len(group.sequences) - 1) * group.num_tokens
