"""A model whose logits say whether it was given the right context."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from kernels.batch import PrefixGroups, Step

UNWRITTEN = -1
POSITIONS = np.arange(4096, dtype=np.int32)


@dataclass(frozen=True)
class Config:
    vocab_size: int = 32
    context_length: int = 64
    num_layers: int = 1
    num_kv_heads: int = 1
    head_dim: int = 16


@dataclass(frozen=True)
class Host:
    name: str = "cpu"


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
    device: Host = field(default_factory=Host)
    sizes: list[tuple[int, ...]] = field(default_factory=list)  # tokens of each sequence, step by step
    bytes_per_state: int = 0

    def bytes_per_block(self, block_tokens: int) -> int:
        return block_tokens * 8

    def allocate_cache(self, num_blocks: int, block_tokens: int, num_states: int = 0) -> np.ndarray:
        assert num_states == 0, "it has no recurrent layers"
        self.block_tokens = block_tokens
        return np.full((num_blocks * block_tokens, 3), UNWRITTEN, np.int32)

    def forward(self, step: Step, cache: np.ndarray) -> np.ndarray:
        check_shapes(step)
        if self.crash_id is not None and self.crash_id in step.token_ids:
            raise self.crash
        written = set(zip(step.slots.tolist(), step.token_ids.tolist(), step.positions.tolist(), strict=True))
        assert len(set(step.slots.tolist())) == len(written), "two different tokens of a step share a slot"
        is_long = np.repeat(self.is_long(step), np.diff(step.query_starts))
        cache[step.slots] = np.stack([step.token_ids, step.positions, is_long], axis=1)
        self.sizes.append(tuple(np.diff(step.query_starts).tolist()))
        return np.array([self.row(step, cache, token) for token in step.logit_rows], np.float32).reshape(
            len(step.logit_rows), self.config.vocab_size
        )

    def is_long(self, step: Step) -> np.ndarray:
        return step.sequence_lengths > (self.recompute_at or self.config.context_length)

    def row(self, step: Step, cache: np.ndarray, token: int) -> np.ndarray:
        sequence = int(np.searchsorted(step.query_starts, token, side="right")) - 1
        num_tokens = int(step.positions[token]) + 1
        positions = POSITIONS[:num_tokens]
        blocks = step.block_tables[sequence, : -(-num_tokens // self.block_tokens)]
        pages = cache.reshape(-1, self.block_tokens, 3)
        token_ids, written, is_long = pages[blocks].reshape(-1, 3)[:num_tokens].T
        assert written.tobytes() == positions.tobytes(), "a slot in the context holds a token of another position"
        assert (is_long == self.is_long(step)[sequence]).all(), "a slot was written for another length of sequence"
        if self.poison_id is not None and self.poison_id in token_ids:
            return np.full(self.config.vocab_size, np.nan)
        return logits_of(token_ids.tobytes() + is_long[:1].tobytes(), self.config.vocab_size)


@cache
def logits_of(context: bytes, vocab_size: int) -> np.ndarray:
    """Numbers that are others for each context; most contexts come many times, in one schedule and the next."""
    digest = hashlib.blake2b(context, digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest)).normal(0, 2, vocab_size)


def check_shapes(step: Step) -> None:
    """What `Step` promises."""
    num_tokens, num_sequences = len(step.token_ids), len(step.context_lengths)
    assert {array.dtype for array in (step.token_ids, step.positions, step.slots, step.query_starts)} == {
        np.dtype(np.int32)
    }
    assert {array.dtype for array in (step.context_lengths, step.block_tables, step.logit_rows)} == {np.dtype(np.int32)}
    assert step.sequence_lengths.dtype == np.int32
    assert (step.sequence_lengths >= step.context_lengths).all()
    assert step.positions.shape == step.slots.shape == (num_tokens,)
    assert step.query_starts.shape == (num_sequences + 1,)
    assert step.query_starts[0] == 0
    assert step.query_starts[-1] == num_tokens
    assert step.block_tables.shape[0] == num_sequences
    last = step.query_starts[1:] - 1
    assert (step.positions[last] + 1 == step.context_lengths).all()
    assert set(step.logit_rows.tolist()) <= set(range(num_tokens))


def check_prefixes(step: Step, prefixes: PrefixGroups, block_tokens: int) -> int:
    """What `PrefixGroups` promises; how many groups there are."""
    assert {prefixes.groups.dtype, prefixes.members.dtype} == {np.dtype(np.int32)}
    groups = [group for group in prefixes.groups.tolist() if group != [0, 0, 0]]
    rows = [prefixes.members[first : first + count].tolist() for first, count, _ in groups]
    assert sorted({row for members in rows for row in members}) == sorted(row for members in rows for row in members)
    for members, (_, count, num_tokens) in zip(rows, groups, strict=True):
        assert len(members) == count > 1
        tables = step.block_tables[members, : -(-num_tokens // block_tokens)]
        assert (tables == tables[0]).all(), "a group whose members do not hold the same blocks"
        assert (np.diff(step.query_starts)[members] == 1).all()
        assert num_tokens > 0 and (step.context_lengths[members] > num_tokens).all()
    return len(groups)
