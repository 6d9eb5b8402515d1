"""A model with recurrent layers whose logits say whether it was given the right states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from kernels.batch import Step
from tests.worker.engine.context_model import ContextModel

MULTIPLIERS = np.array([7919, 104729, 1000003, 15485863], np.float64)
PRIMES = np.array([1000033, 1000037, 1000039, 1000081], np.float64)  # so that all products are exact


class Cache(NamedTuple):
    """As `worker.model.kv_cache.KVCache`; the state of each slot is in two arrays."""

    context: np.ndarray  # what `ContextModel` keeps
    states: tuple[tuple[np.ndarray, np.ndarray], ...]  # (number of tokens [slots, 1], digest of them [slots, 4])


@dataclass
class RecurrentModel(ContextModel):
    """A `ContextModel` that also advances a state with every token, which its logits depend on.

    Slots begin with NaN, which makes logits NaN: so nothing that was never written may be read. With ``crash_id`` it
    raises after all states were advanced.
    """

    bytes_per_state: int = 40

    def allocate_cache(self, num_blocks: int, block_tokens: int, num_states: int = 0) -> Cache:
        shape = num_states, len(PRIMES)
        states = np.full((num_states, 1), np.nan), np.full(shape, np.nan)
        return Cache(super().allocate_cache(num_blocks, block_tokens), (states,))

    def forward(self, step: Step, cache: Cache) -> np.ndarray:
        digests = self.advance(step, *cache.states[0])
        logits = super().forward(step, cache.context)
        for row, token in enumerate(step.logit_rows.tolist()):
            if not np.isfinite(digests[token]).all():
                logits[row] = np.nan
            else:
                logits[row] += np.random.default_rng(digests[token].astype(np.int64)).normal(0, 2, logits.shape[1])
        return logits

    def advance(self, step: Step, counts: np.ndarray, digests: np.ndarray) -> np.ndarray:
        """Advance the states of a step's sequences; returns the digest behind each token [T, 4]."""
        slots, sources = check_state_rows(step)
        behind = np.empty((len(step.token_ids), len(PRIMES)))
        for sequence, (slot, source) in enumerate(zip(slots, sources, strict=True)):
            tokens = range(step.query_starts[sequence], step.query_starts[sequence + 1])
            count, digest = (0.0, np.ones(len(PRIMES))) if source < 0 else (counts[source, 0], digests[source])
            start = step.positions[tokens.start]
            assert np.isnan(count) or count == start, "a state of other tokens than those before"
            for token in tokens:
                digest = (digest * MULTIPLIERS + step.token_ids[token] + 1) % PRIMES
                behind[token] = digest
            counts[slot], digests[slot] = count + len(tokens), digest
        return behind


def check_state_rows(step: Step) -> tuple[list[int], list[int]]:
    """What `StateRows` promises; its slots and its sources."""
    assert step.states is not None, "a step of a model with recurrent layers says where states are"
    slots, sources = step.states.slots.tolist(), step.states.sources.tolist()
    assert step.states.slots.dtype == step.states.sources.dtype == np.int32
    assert len(slots) == len(sources) == len(step.context_lengths)
    assert len(set(slots)) == len(slots) and min(slots) >= 0, "two sequences have one slot"
    for slot, source in zip(slots, sources, strict=True):
        assert source == slot or source not in slots, "a slot is written in the step that reads it"
    starts = step.positions[step.query_starts[:-1]]
    assert ((step.states.sources < 0) == (starts == 0)).all(), "only a sequence that begins has no state"
    return slots, sources
