"""Which state slot each sequence has, and which slots hold snapshots."""

from __future__ import annotations

from collections.abc import Collection
from collections.abc import Sequence as Series

from worker.engine.cache.cache_pool import CachePool
from worker.engine.cache.prefix_cache import PrefixCache
from worker.engine.sequence import Sequence


class StateSlots:
    """Gives running sequences of a model with recurrent layers the slots of their states (`kernels.batch.StateRows`).

    A snapshot is the state behind full blocks of tokens, known by the hash of the last one. It takes no copy: the slot
    of a sequence that has come to the end of such a block becomes the snapshot, and the sequence goes on in another
    slot; its next step reads the one and writes the other. When a sequence or another snapshot needs a slot, the least
    recently used of the snapshots that nobody is about to read is dropped.

    Snapshots are kept where they save most: at the last block's end within a prompt, from which equal prompts, other
    choices, longer conversations and, after a preemption, the sequence itself go on; and at the end of the blocks that
    were known before, where two prompts part, and others may.
    """

    def __init__(self, *, num_slots: int, block_tokens: int) -> None:
        """At least as many slots as sequences may run."""
        self.pool = CachePool(num_slots)
        self._block_tokens = block_tokens
        self._snapshots = PrefixCache(block_tokens)

    def match(self, block_hashes: Series[bytes]) -> int:
        """How many blocks there are, of these first ones of a sequence, up to the last snapshot."""
        for num_blocks in range(len(block_hashes), 0, -1):
            if self._snapshots.find(block_hashes[num_blocks - 1]) is not None:
                return num_blocks
        return 0

    def start(self, sequence: Sequence, *, num_known: int) -> None:
        """Give a sequence a slot, of which one must be free; it goes on from the snapshot behind its computed tokens.

        The first ``num_known`` of its blocks are in the KV cache, whether or not there is a snapshot behind them.
        """
        if sequence.num_computed:
            sequence.state_source = self._snapshots.find(self._last_hash(sequence))
            assert sequence.state_source is not None, "a sequence goes on from a snapshot that is not there"
            self.pool.retain(sequence.state_source)
        if self.pool.num_free:
            sequence.state_slot = self._allocate()
        else:  # the free one is the snapshot's
            assert sequence.state_source is not None, "no free slot: somebody must have looked for one"
            self._snapshots.forget(sequence.state_source)
            sequence.state_slot = sequence.state_source
        ends = {(sequence.num_prompt - 1) // self._block_tokens, num_known}
        sequence.snapshot_ends = sorted(
            end * self._block_tokens for end in ends if end * self._block_tokens > sequence.num_computed
        )

    def launch(self, sequence: Sequence) -> None:
        """A step computes tokens of the sequence, which are counted already."""
        if sequence.state_source != sequence.state_slot:
            self._release_source(sequence)
            sequence.state_source = sequence.state_slot
        if sequence.snapshot_ends and sequence.num_computed >= sequence.snapshot_ends[0]:
            assert sequence.num_computed == sequence.snapshot_ends[0], "a chunk that goes beyond a snapshot"
            del sequence.snapshot_ends[0]
            self._keep(sequence)

    def forget(self, sequence: Sequence) -> None:
        """Nobody else shall go on from what a sequence computed."""
        for block_hash in sequence.block_hashes:
            snapshot = self._snapshots.find(block_hash)
            if snapshot is not None:
                self._snapshots.forget(snapshot)

    def release(self, sequence: Sequence) -> None:
        """Take back what a running sequence holds: its state is not needed any more."""
        assert sequence.state_slot is not None, "a sequence without a slot"
        if sequence.state_source != sequence.state_slot:
            self._release_source(sequence)
        self.pool.release(sequence.state_slot, useful=False)
        sequence.state_slot = sequence.state_source = None
        sequence.snapshot_ends = []

    def _keep(self, sequence: Sequence) -> None:
        """Make the sequence's slot a snapshot, unless there is one already, or no slot to go on in."""
        block_hash = self._last_hash(sequence)
        if self.pool.num_free and self._snapshots.find(block_hash) is None:
            assert sequence.state_slot is not None
            self._snapshots.insert(block_hash, sequence.state_slot)
            sequence.state_slot = self._allocate()

    def _last_hash(self, sequence: Sequence) -> bytes:
        """Of the block that its computed tokens end with."""
        return sequence.block_hashes[sequence.num_computed // self._block_tokens - 1]

    def _allocate(self) -> int:
        slot = self.pool.allocate()
        self._snapshots.forget(slot)
        return slot

    def _release_source(self, sequence: Sequence) -> None:
        source = sequence.state_source
        if source is not None:
            self.pool.release(source, useful=source in self._snapshots)

    def check_invariants(self, running: Collection[Sequence]) -> None:
        """Every slot's references are the ``running`` sequences that write or read it; none writes a snapshot."""
        self.pool.check_invariants()
        self._snapshots.check_invariants()
        for sequence in running:
            assert sequence.state_slot is not None and sequence.state_slot not in self._snapshots
            assert (sequence.state_source is None) == (not sequence.num_computed), "a state of other tokens"
            assert all(end > sequence.num_computed for end in sequence.snapshot_ends)
        held = [{each.state_slot, each.state_source} for each in running]
        self.pool.check_holders([slot for slot in slots if slot is not None] for slots in held)
