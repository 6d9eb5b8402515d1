"""Feeds sequences to a model step by step, as the engine does, over a cache and states poisoned with NaN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kernels.batch import StateRows, Step
from worker.model.registry import Model

POISON_CODE = -128  # which nothing is quantised to


class Stepper:
    """Some sequences of known tokens, each in blocks scattered over the pool; states go from slot to slot."""

    def __init__(
        self, model: Model, prompts: Sequence[Sequence[int]], *, block_tokens: int = 16, seed: int = 0
    ) -> None:
        self._model = model
        self._block_tokens = block_tokens
        self._tokens = [list(prompt) for prompt in prompts]
        self._num_computed = [0] * len(prompts)
        max_blocks = -(-model.config.context_length // block_tokens)
        self._max_blocks = min(max_blocks, -(-(max(map(len, prompts)) + 64) // block_tokens))
        num_blocks = self._max_blocks * len(prompts) + 3
        num_states = 2 * len(prompts) if model.bytes_per_state else 0
        self._cache = model.allocate_cache(num_blocks, block_tokens, num_states)
        kept = [array for layer in self._cache.layers for array in layer.arrays()]
        for array in (*kept, *(array for state in self._cache.states for array in state)):
            array.fill(np.nan if array.dtype.kind == "f" else POISON_CODE)
        self._state_slots = [-1] * len(prompts)
        self._free_slots = list(range(num_states))
        order = np.random.default_rng(seed).permutation(num_blocks).astype(np.int32)
        self._tables = order[: self._max_blocks * len(prompts)].reshape(len(prompts), self._max_blocks)

    def append(self, sequence: int, token_id: int) -> None:
        self._tokens[sequence].append(token_id)

    def restart(self, sequence: int) -> None:
        """Have a sequence without states computed from its beginning again."""
        assert self._state_slots[sequence] < 0
        self._num_computed[sequence] = 0

    def step(self, num_tokens: Mapping[int, int]) -> dict[int, np.ndarray]:
        """Compute the next ``num_tokens`` of some sequences; logits [num_tokens, vocab] of each."""
        logits = self.step_for(num_tokens, list(range(sum(num_tokens.values()))))
        ends = np.cumsum(list(num_tokens.values())).tolist()
        return {member: logits[end - num_tokens[member] : end] for member, end in zip(num_tokens, ends, strict=True)}

    def step_for(self, num_tokens: Mapping[int, int], logit_rows: Sequence[int]) -> np.ndarray:
        """Compute the next ``num_tokens`` of some sequences; logits [R, vocab] of R of the step's tokens."""
        members = list(num_tokens)
        starts = [self._num_computed[member] for member in members]
        ends = [start + num_tokens[member] for start, member in zip(starts, members, strict=True)]
        positions = np.concatenate([np.arange(start, end) for start, end in zip(starts, ends, strict=True)])
        counts = [num_tokens[member] for member in members]
        rows = np.repeat(members, counts)
        block_ids = self._tables[rows, positions // self._block_tokens]
        ids = [self._tokens[member][start:end] for member, start, end in zip(members, starts, ends, strict=True)]
        query_starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        step = Step(
            token_ids=np.concatenate(ids).astype(np.int32),
            positions=positions.astype(np.int32),
            slots=(block_ids * self._block_tokens + positions % self._block_tokens).astype(np.int32),
            sequence_rows=np.repeat(np.arange(len(members), dtype=np.int32), counts),
            query_starts=query_starts,
            context_lengths=np.array(ends, np.int32),
            sequence_lengths=np.array([len(self._tokens[member]) for member in members], np.int32),
            block_tables=self._tables[members],
            logit_rows=np.array(logit_rows, np.int32),
            states=self._next_states(members) if self._model.bytes_per_state else None,
        )
        logits = self._model.forward(step, self._cache)
        for member, end in zip(members, ends, strict=True):
            self._num_computed[member] = end
        assert isinstance(logits, np.ndarray)
        return logits

    def _next_states(self, members: list[int]) -> StateRows[np.ndarray]:
        """A slot for the state of each after the step; those of the states before are free when it is done."""
        sources = [self._state_slots[member] for member in members]
        slots = [self._free_slots.pop() for _ in members]
        for member, slot in zip(members, slots, strict=True):
            self._state_slots[member] = slot
        self._free_slots += [source for source in sources if source >= 0]
        return StateRows(np.array(slots, np.int32), np.array(sources, np.int32))


def logits_alone(model: Model, prompt: Sequence[int]) -> np.ndarray:
    """Logits [len(prompt), vocab] of one sequence in one step."""
    return Stepper(model, [prompt]).step({0: len(prompt)})[0]


def greedy(model: Model, prompts: Sequence[Sequence[int]], num_tokens: int) -> list[list[int]]:
    """The continuations by largest logits, decoded together, a token of each a step; a model may void a cache once."""
    stepper = Stepper(model, prompts)
    logits = stepper.step({number: len(prompt) for number, prompt in enumerate(prompts)})
    ids: list[list[int]] = [[] for _ in prompts]
    for _ in range(num_tokens):
        counts = {}
        for number, prompt in enumerate(prompts):
            ids[number].append(int(logits[number][-1].argmax()))
            stepper.append(number, ids[number][-1])
            length = len(prompt) + len(ids[number])
            is_void = model.recompute_at is not None and length == model.recompute_at + 1
            if is_void:
                stepper.restart(number)
            counts[number] = length if is_void else 1
        logits = stepper.step(counts)
    return ids
