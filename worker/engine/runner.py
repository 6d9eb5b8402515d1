"""One planned step on the device: build its arrays, run the model, draw the next tokens."""

from __future__ import annotations

from collections.abc import Sequence as Series
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from kernels.reference.sampling import adjust_logits, log_probabilities, sample
from kernels.step import Step
from worker.contract import TokenLogprobs
from worker.engine.adjustments import build_adjustments
from worker.engine.scheduler import Chunk
from worker.engine.sequence import Sequence
from worker.errors import OrcdError
from worker.model.adapters import Model


class Draw(NamedTuple):
    """A token drawn for one sequence."""

    token_id: int
    logprobs: TokenLogprobs | None


Result = Draw | OrcdError | None
"""What a step did for a chunk: None where more of the prompt is to come, or what went wrong."""

Ticket = Any
"""A launched step, to be collected; only its runner knows what is in it."""


class Runner(Protocol):
    """Where steps run: a model and its KV cache."""

    @property
    def depth(self) -> int:
        """Steps that may be in flight: with 2, the next one is launched before the last one's draws are known."""

    def launch(self, chunks: list[Chunk]) -> Ticket:
        """Start a step. Steps run in the order of their launch; ``chunks`` have not been counted as launched yet."""

    def collect(self, ticket: Ticket) -> Series[Result]:
        """Wait for the oldest launched step; a result for each of its chunks. Raises `CudaError`."""


class SynchronousRunner:
    """Runs a step when it is launched: for NumPy, where nothing can go on beside the host."""

    depth = 1

    def __init__(self, model: Model, *, num_blocks: int, block_tokens: int) -> None:
        self._model = model
        self._block_tokens = block_tokens
        self._cache = model.allocate_cache(num_blocks, block_tokens)

    def launch(self, chunks: list[Chunk]) -> Ticket:
        logits = self._model.forward(build_step(chunks, self._block_tokens), self._cache)
        draws = iter(_draw(logits, [chunk.sequence for chunk in chunks if chunk.draws]))
        return [next(draws) if chunk.draws else None for chunk in chunks]

    def collect(self, ticket: Ticket) -> Series[Result]:
        results: list[Result] = ticket
        return results


def build_step(chunks: list[Chunk], block_tokens: int) -> Step:
    """The flat arrays of one step; see `Step`."""
    starts = [chunk.sequence.num_computed for chunk in chunks]
    ends = [start + chunk.num_tokens for start, chunk in zip(starts, chunks, strict=True)]
    block_tables = np.zeros((len(chunks), max(len(chunk.sequence.block_ids) for chunk in chunks)), np.int32)
    for row, chunk in enumerate(chunks):
        block_tables[row, : len(chunk.sequence.block_ids)] = chunk.sequence.block_ids
    num_tokens = [chunk.num_tokens for chunk in chunks]
    rows = np.repeat(np.arange(len(chunks)), num_tokens)
    positions = np.concatenate([np.arange(start, end, dtype=np.int32) for start, end in zip(starts, ends, strict=True)])
    query_starts = np.concatenate([[0], np.cumsum(num_tokens)]).astype(np.int32)
    token_ids: list[int] = []
    for start, end, chunk in zip(starts, ends, chunks, strict=True):
        token_ids += chunk.sequence.token_ids[start:end]
    return Step(
        token_ids=np.array(token_ids, np.int32),
        positions=positions,
        slots=block_tables[rows, positions // block_tokens] * block_tokens + positions % block_tokens,
        sequence_rows=rows.astype(np.int32),
        query_starts=query_starts,
        context_lengths=np.array(ends, np.int32),
        sequence_lengths=np.array([chunk.sequence.num_tokens for chunk in chunks], np.int32),
        block_tables=block_tables,
        logit_rows=query_starts[1:][[chunk.draws for chunk in chunks]] - 1,
    )


def _draw(logits: NDArray[np.float32], sequences: list[Sequence]) -> list[Draw | OrcdError]:
    """One token for each sequence from its row of ``logits`` [R, vocab], which is overwritten."""
    if not sequences:
        return []
    adjust_logits(logits, build_adjustments(sequences), out=logits)
    options = [sequence.sampling for sequence in sequences]
    ids = np.empty(len(sequences), np.int32)
    sample(
        logits,
        np.array([option.temperature for option in options], np.float32),
        np.array([option.top_k for option in options], np.int32),
        np.array([option.top_p for option in options], np.float32),
        np.array([option.min_p for option in options], np.float32),
        np.array([(each.sampling.seed + each.choice) % (1 << 64) for each in sequences], np.uint64),
        np.array([sequence.num_output for sequence in sequences], np.int64),
        out_ids=ids,
    )
    return [
        Draw(token_id, _logprobs(row, token_id, option.logprobs))
        if token_id >= 0
        else OrcdError("the model gave non-finite logits for this request; its weights or this input are at fault")
        for row, token_id, option in zip(logits, ids.tolist(), options, strict=True)
    ]


def _logprobs(logits: NDArray[np.float32], token_id: int, num_top: int | None) -> TokenLogprobs | None:
    if num_top is None:
        return None
    values = np.empty_like(logits)
    log_probabilities(logits[None], out=values[None])
    top = np.argsort(-values, kind="stable")[:num_top]  # the lowest id of equals first
    return TokenLogprobs(float(values[token_id]), tuple(top.tolist()), tuple(values[top].tolist()))
