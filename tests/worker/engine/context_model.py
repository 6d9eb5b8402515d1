"""A model whose logits say whether it was given the right context."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np

from worker.engine.batch import Batch

UNWRITTEN = -1


@dataclass(frozen=True)
class Config:
    vocab_size: int = 32
    context_length: int = 64


@dataclass
class ContextModel:
    """Its "keys and values" are token id and position; its logits a hash of all tokens read back from the cache.

    Every read goes through block tables, so that a wrong slot, a stale block, or a token that was never computed
    changes the logits or fails at once. ``poison_id`` makes the logits of its context NaN, ``crash_id`` raises.
    Beyond ``recompute_at`` tokens it wants a cache that was written for a long sequence, and gives other logits.
    """

    config: Config = field(default_factory=Config)
    recompute_at: int | None = None
    poison_id: int | None = None
    crash_id: int | None = None
    crash: Exception = field(default_factory=lambda: ValueError("secret"))
    sizes: list[tuple[int, ...]] = field(default_factory=list)  # tokens of each sequence, step by step

    def bytes_per_block(self, block_tokens: int) -> int:
        return block_tokens * 8

    def allocate_cache(self, num_blocks: int, block_tokens: int) -> np.ndarray:
        self.block_tokens = block_tokens
        return np.full((num_blocks * block_tokens, 3), UNWRITTEN, np.int32)

    def forward(self, batch: Batch, cache: np.ndarray) -> np.ndarray:
        check_shapes(batch)
        if self.crash_id in batch.token_ids.tolist():
            raise self.crash
        assert len(set(batch.slots.tolist())) == len(batch.slots), "two tokens of a step share a slot"
        is_long = np.repeat(self.is_long(batch), np.diff(batch.query_starts))
        cache[batch.slots] = np.stack([batch.token_ids, batch.positions, is_long], axis=1)
        self.sizes.append(tuple(np.diff(batch.query_starts).tolist()))
        return np.array([self.row(batch, cache, token) for token in batch.logit_rows], np.float32).reshape(
            len(batch.logit_rows), self.config.vocab_size
        )

    def is_long(self, batch: Batch) -> np.ndarray:
        return batch.sequence_lengths > (self.recompute_at or self.config.context_length)

    def row(self, batch: Batch, cache: np.ndarray, token: int) -> np.ndarray:
        sequence = int(np.searchsorted(batch.query_starts, token, side="right")) - 1
        positions = np.arange(batch.positions[token] + 1)
        blocks = batch.block_tables[sequence, positions // self.block_tokens]
        token_ids, written, is_long = cache[blocks * self.block_tokens + positions % self.block_tokens].T
        assert (written == positions).all(), "a slot in the context holds a token of another position"
        assert (is_long == self.is_long(batch)[sequence]).all(), "a slot was written for another length of sequence"
        if self.poison_id in token_ids.tolist():
            return np.full(self.config.vocab_size, np.nan)
        digest = hashlib.blake2b(token_ids.tobytes() + is_long[:1].tobytes(), digest_size=8).digest()
        return np.random.default_rng(int.from_bytes(digest)).normal(0, 2, self.config.vocab_size)


def check_shapes(batch: Batch) -> None:
    """What `Batch` promises."""
    num_tokens, num_sequences = len(batch.token_ids), len(batch.context_lengths)
    assert {array.dtype for array in (batch.token_ids, batch.positions, batch.slots, batch.query_starts)} == {
        np.dtype(np.int32)
    }
    assert {array.dtype for array in (batch.context_lengths, batch.block_tables, batch.logit_rows)} == {
        np.dtype(np.int32)
    }
    assert batch.sequence_lengths.dtype == np.int32
    assert (batch.sequence_lengths >= batch.context_lengths).all()
    assert batch.positions.shape == batch.slots.shape == (num_tokens,)
    assert batch.query_starts.shape == (num_sequences + 1,)
    assert batch.query_starts[0] == 0
    assert batch.query_starts[-1] == num_tokens
    assert batch.block_tables.shape[0] == num_sequences
    last = batch.query_starts[1:] - 1
    assert (batch.positions[last] + 1 == batch.context_lengths).all()
    assert set(batch.logit_rows.tolist()) <= set(last.tolist())
