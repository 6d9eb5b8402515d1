"""One planned step on the device: build the batch, run the model, draw the next tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kernels.reference.sampling import Adjustments, adjust_logits, log_probabilities, sample
from worker.contract import TokenLogprobs
from worker.engine.batch import Batch
from worker.engine.scheduler import Chunk
from worker.engine.sequence import Sequence
from worker.errors import OrcdError
from worker.model.adapters import Model


@dataclass(frozen=True, slots=True)
class Draw:
    """A token drawn for one sequence."""

    token_id: int
    logprobs: TokenLogprobs | None


class Runner:
    """The model and its KV cache."""

    def __init__(self, model: Model, *, num_blocks: int, block_tokens: int) -> None:
        self._model = model
        self._block_tokens = block_tokens
        self._cache = model.allocate_cache(num_blocks, block_tokens)

    def run(self, chunks: list[Chunk]) -> list[Draw | OrcdError | None]:
        """Compute ``chunks``; for each one the draw, None where more of the prompt is to come, or what went wrong."""
        logits = self._model.forward(build_batch(chunks, self._block_tokens), self._cache)
        draws = iter(_draw(logits, [chunk.sequence for chunk in chunks if chunk.draws]))
        return [next(draws) if chunk.draws else None for chunk in chunks]


def build_batch(chunks: list[Chunk], block_tokens: int) -> Batch:
    """The flat arrays of one step; see `Batch`."""
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
    return Batch(
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
    adjust_logits(logits, _adjustments(sequences), out=logits)
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


def _adjustments(sequences: list[Sequence]) -> Adjustments:
    """The sparse edits of each row: an entry for every id that a penalty, a bias or `min_tokens` touches."""
    rows: list[int] = []
    entries: list[tuple[int, float, bool, int, bool]] = []
    for row, sequence in enumerate(sequences):
        before = len(entries)
        entries += _row_adjustments(sequence)
        rows += [row] * (len(entries) - before)
    columns = list(zip(*entries, strict=True)) or [()] * 5
    options = [sequence.sampling for sequence in sequences]
    return Adjustments(
        rows=np.array(rows, np.int32),
        token_ids=np.array(columns[0], np.int32),
        bias=np.array(columns[1], np.float32),
        seen=np.array(columns[2], np.bool_),
        output_counts=np.array(columns[3], np.int32),
        banned=np.array(columns[4], np.bool_),
        repetition_penalty=np.array([option.repetition_penalty for option in options], np.float32),
        presence_penalty=np.array([option.presence_penalty for option in options], np.float32),
        frequency_penalty=np.array([option.frequency_penalty for option in options], np.float32),
    )


def _row_adjustments(sequence: Sequence) -> list[tuple[int, float, bool, int, bool]]:
    """(token id, bias, seen, count in the output, banned) of one row."""
    options = sequence.sampling
    seen: set[int] = set(sequence.token_ids) if options.repetition_penalty != 1 else set()
    counts: dict[int, int] = {}
    if options.presence_penalty or options.frequency_penalty:
        for token_id in sequence.token_ids[sequence.num_prompt :]:
            counts[token_id] = counts.get(token_id, 0) + 1
    banned = set(options.stop_token_ids) if sequence.num_output < options.min_tokens else set()
    return [
        (token_id, options.logit_bias.get(token_id, 0.0), token_id in seen, counts.get(token_id, 0), token_id in banned)
        for token_id in sorted(seen | counts.keys() | options.logit_bias.keys() | banned)
    ]
