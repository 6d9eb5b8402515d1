"""Who holds which block of the KV cache."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable


class BlockPool:
    """Reference counts over a fixed number of blocks.

    A block without references keeps its contents until `allocate` hands it out again, which evicts them. Eviction is
    LRU: blocks without useful contents go first; those that the prefix cache knows go last, least recently used
    (released) first.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._num_references = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks that somebody holds."""
        return self.num_blocks - len(self._free)

    def is_free(self, block_id: int) -> bool:
        """Whether nobody holds the block."""
        return block_id in self._free

    def allocate(self) -> int:
        """Take a free block; the caller holds its first reference. Somebody must have looked at `num_free`."""
        assert self._free, "no free block: the scheduler promised more than there is"
        block_id, _ = self._free.popitem(last=False)
        self._num_references[block_id] = 1
        return block_id

    def retain(self, block_id: int) -> None:
        """Take one more reference, or the first one to a free block whose contents are still good."""
        if not self._num_references[block_id]:
            del self._free[block_id]
        self._num_references[block_id] += 1

    def release(self, block_id: int, *, useful: bool) -> None:
        """Give one reference back; ``useful``: the contents are worth keeping as long as other blocks last."""
        assert self._num_references[block_id] > 0, f"block {block_id} released more often than retained"
        self._num_references[block_id] -= 1
        if not self._num_references[block_id]:
            self._free[block_id] = None
            self._free.move_to_end(block_id, last=useful)

    def check_invariants(self) -> None:
        """Every block is either free or held, never both."""
        assert len(self._num_references) == self.num_blocks
        for block_id, num_references in enumerate(self._num_references):
            assert num_references >= 0
            assert (num_references == 0) == (block_id in self._free), f"block {block_id}: {num_references} references"

    def check_tables(self, tables: Iterable[Iterable[int]]) -> None:
        """Every block's references are the tables it is in."""
        counts = Counter(block_id for table in tables for block_id in table)
        for block_id, num_references in enumerate(self._num_references):
            assert num_references == counts[block_id], f"block {block_id} is in {counts[block_id]} tables"
