"""Which blocks of the KV cache each sequence holds."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import islice

from worker.engine.cache.cache_pool import CachePool
from worker.engine.cache.prefix_cache import PrefixCache
from worker.engine.sequence import Sequence

LEAST_AWAITED_TOKENS = 256
"""A prefix that is being computed is worth waiting for, which takes a step or a few, if it has so many tokens."""


class BlockTables:
    """Gives running sequences the blocks of their tokens; those with equal beginnings get the same ones.

    The table of a sequence is its `block_ids`. A block that is given back stays known by the prefix that it holds until
    the pool hands it out again.
    """

    def __init__(self, *, num_blocks: int, block_tokens: int, rewrites_blocks: bool) -> None:
        """``rewrites_blocks``: see `worker.engine.scheduler.Scheduler`."""
        self.block_tokens = block_tokens
        self.pool = CachePool(num_blocks)
        self._prefix_cache = PrefixCache(block_tokens)
        self._rewrites_blocks = rewrites_blocks
        self._being_computed: dict[bytes, Sequence] = {}
        """Running sequences by the hashes of blocks that they are to make known; of several the first."""
        self._unpublished: dict[Sequence, None] = {}  # those with full blocks that are put off
        self._unhashed: dict[Sequence, None] = {}  # running ones whose blocks but the first are not hashed yet

    def match(self, sequence: Sequence) -> list[int]:
        """The blocks that hold the longest known prefix of a waiting sequence.

        Where a device works by itself and does not know the first block, the others are hashed when it is at work.
        """
        self.publish_all()
        may_put_off = self._rewrites_blocks and not sequence.block_hashes
        ids = sequence.token_ids, sequence.packed_ids
        if may_put_off and not self._prefix_cache.knows_first(sequence.hash_root, *ids):
            return []
        return self._prefix_cache.match(self._matchable_hashes(sequence))

    def awaits_prefix(self, sequence: Sequence) -> bool:
        """Whether a waiting sequence had better wait for a prefix that a running one is computing.

        It is noted in the sequence (`Sequence.waits_for_prefix`): nothing else changes before that one is so far.
        """
        self.publish_all()
        if not self._being_computed:
            return False
        hashes = self._matchable_hashes(sequence)
        num_known = len(self._prefix_cache.match(hashes))
        num_awaited = num_known
        while num_awaited < len(hashes) and hashes[num_awaited] in self._being_computed:
            num_awaited += 1
        if (num_awaited - num_known) * self.block_tokens < LEAST_AWAITED_TOKENS:
            return False
        sequence.prefix_leader = self._being_computed[hashes[num_awaited - 1]]
        sequence.num_awaited_blocks = num_awaited
        return sequence.waits_for_prefix

    def _matchable_hashes(self, sequence: Sequence) -> list[bytes]:
        """Hashes of the blocks that a waiting sequence need not compute if they are known."""
        self._extend_hashes(sequence)
        # The last token is always computed: it gives the logits.
        num_matchable = (sequence.num_tokens - (not self._rewrites_blocks)) // self.block_tokens
        if sequence.prompt_logprobs is not None:
            num_matchable = min(num_matchable, sequence.num_reported // self.block_tokens)
        return sequence.block_hashes[:num_matchable]

    def _extend_hashes(self, sequence: Sequence) -> None:
        self._prefix_cache.extend(sequence.block_hashes, sequence.hash_root, sequence.token_ids, sequence.packed_ids)

    def start(self, sequence: Sequence, known: list[int], *, beside: Collection[Sequence], num_foreseen: int) -> bool:
        """Give a waiting sequence all blocks that its tokens need, the ``known`` ones of its prefix first.

        False, and it has none, if what would stay free is not enough for it and those that run ``beside`` it: one block
        for each of these, and what all will need within ``num_foreseen`` steps as far as they go on until then.
        """
        num_new = self._num_blocks_for(sequence.num_tokens) - len(known)
        num_free = self.pool.num_free - sum(map(self.pool.is_free, known)) - num_new
        if num_free < len(beside):
            return False
        most = (len(beside) + 1) * self._num_blocks_for(num_foreseen)
        if beside and num_free < most and num_free < self._blocks_needed([*beside, sequence], num_foreseen):
            return False
        self.pool.retain_all(known)
        if len(sequence.block_hashes) < len(sequence.token_ids) // self.block_tokens:
            self._unhashed[sequence] = None
        self._note_computing(sequence, len(known))
        sequence.block_ids = known
        sequence.num_published = len(known)
        sequence.num_computed = min(len(known) * self.block_tokens, sequence.num_tokens - 1)
        self._allocate(sequence, num_new)
        return True

    def _blocks_needed(self, sequences: Collection[Sequence], num_foreseen: int) -> int:
        """The most that they need besides those of the tokens that they have, at any time within so many steps.

        Each draws a token in each step until it has its longest form; what it holds is then free for the others. It may
        come out a block too large for each.
        """
        left = sorted((min(each.most_tokens - each.num_tokens, num_foreseen), each.num_tokens) for each in sequences)
        num_drawing, num_tokens = len(left), sum(tokens for _, tokens in left)
        num_held = sum(self._num_blocks_for(tokens) for _, tokens in left)
        most = 0
        for num_steps, tokens in left:  # the need is largest before one of them ends
            most = max(most, self._num_blocks_for(num_tokens + num_drawing * (num_steps + self.block_tokens - 1)))
            num_tokens -= tokens
            num_drawing -= 1
        return most - num_held

    def grow(self, sequence: Sequence) -> bool:
        """Give a running sequence blocks for all its tokens; False if there are too few, of which it then has all."""
        num_missing = self._num_blocks_for(sequence.num_tokens) - len(sequence.block_ids)
        num_new = min(num_missing, self.pool.num_free)
        if num_new > 0:
            self._allocate(sequence, num_new)
        return num_new >= num_missing

    def grow_all(self, sequences: Iterable[Sequence], *, reserve: int) -> None:
        """`grow` those that lack a block and go on, as long as more than ``reserve`` are free: in one call."""
        tokens = [(each, each.num_tokens) for each in sequences]
        growing = [
            each
            for each, num_tokens in tokens
            if num_tokens < each.most_tokens and len(each.block_ids) * self.block_tokens < num_tokens
        ]
        block_ids = self.pool.allocate_all(max(0, min(len(growing), self.pool.num_free - reserve)))
        for sequence, block_id in zip(growing, block_ids, strict=False):
            self._prefix_cache.forget(block_id)
            sequence.block_ids.append(block_id)

    def publish(self, sequence: Sequence) -> None:
        """Make full blocks of known tokens known to the prefix cache; steps launched from now on may share them."""
        num_known = len(sequence.token_ids)
        if num_known < (sequence.num_published + 1) * self.block_tokens:  # asked first, as it mostly is
            return
        num_full = min(sequence.num_computed, num_known) // self.block_tokens
        if num_full <= sequence.num_published:
            return
        self._extend_hashes(sequence)
        for index in range(sequence.num_published, num_full):
            self._prefix_cache.insert(sequence.block_hashes[index], sequence.block_ids[index])
            self._stop_computing(sequence, sequence.block_hashes[index])
        sequence.num_published = num_full
        if sequence in self._unhashed:
            del self._unhashed[sequence]
            self._note_computing(sequence, num_full)

    def publish_all_later(self, sequences: Iterable[Sequence]) -> None:
        """`publish_later` each: it is known that these have filled a block."""
        self._unpublished.update(dict.fromkeys(sequences))

    def publish_later(self, sequence: Sequence) -> None:
        """Do that with the next `publish_some`, and before anybody asks for a prefix: it takes long for many."""
        if len(sequence.token_ids) >= (sequence.num_published + 1) * self.block_tokens:
            self._unpublished[sequence] = None

    def publish_all(self) -> None:
        """Publish all that were put off, and hash what was."""
        for sequence in self._unhashed:
            self._extend_hashes(sequence)
            self._note_computing(sequence, sequence.num_published)
        self._unhashed.clear()
        self.publish_some(len(self._unpublished))

    def publish_some(self, most: int) -> None:
        """Publish so many of those that were put off, the first ones first."""
        for sequence in tuple(islice(self._unpublished, most)):
            del self._unpublished[sequence]
            self.publish(sequence)

    def forget(self, sequence: Sequence) -> None:
        """Nobody else shall read what a sequence computed."""
        self._unpublished.pop(sequence, None)
        for block_id in sequence.block_ids:
            self._prefix_cache.forget(block_id)

    def release(self, sequence: Sequence) -> None:
        """Take a sequence's blocks back: nothing of it is computed any more."""
        if sequence in self._unpublished:
            del self._unpublished[sequence]
            self.publish(sequence)
        self._unhashed.pop(sequence, None)
        for block_hash in sequence.block_hashes[sequence.num_published :]:
            self._stop_computing(sequence, block_hash)
        for block_id in reversed(sequence.block_ids):  # the end of a prefix is of less use than its beginning
            self.pool.release(block_id, useful=block_id in self._prefix_cache)
        sequence.drop_blocks()

    def _note_computing(self, sequence: Sequence, first: int) -> None:
        for block_hash in sequence.block_hashes[first:]:
            self._being_computed.setdefault(block_hash, sequence)

    def _stop_computing(self, sequence: Sequence, block_hash: bytes) -> None:
        if self._being_computed.get(block_hash) is sequence:
            del self._being_computed[block_hash]

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_tokens)

    def _allocate(self, sequence: Sequence, count: int) -> None:
        block_ids = self.pool.allocate_all(count)
        self._prefix_cache.forget_all(block_ids)
        sequence.block_ids += block_ids

    def check_invariants(self, running: Collection[Sequence]) -> None:
        """Every block's references are the tables of the ``running`` sequences that it is in, which fit these."""
        self.pool.check_invariants()
        self._prefix_cache.check_invariants()
        for sequence in running:
            assert sequence.num_computed <= len(sequence.block_ids) * self.block_tokens
            # One more than there are, as a draw may have been taken back that had a block already.
            assert len(sequence.block_ids) <= self._num_blocks_for(sequence.num_tokens + 1)
        self.pool.check_holders([sequence.block_ids for sequence in running])
        assert self._unhashed.keys() <= set(running), "hashes put off of one that does not run"
        for block_hash, sequence in self._being_computed.items():
            assert sequence in running, "a prefix that nobody computes"
            assert block_hash in sequence.block_hashes[sequence.num_published :]
