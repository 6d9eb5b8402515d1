"""Builds the batch of a planned step: NumPy arrays for the model, and for the sampling after it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kernels.batch import (
    GREEDY_ROW,
    SAMPLING_ROW,
    SHORT_CHUNK,
    PrefixGroups,
    SamplingParams,
    SamplingRow,
    StateRows,
    Step,
    encode_draw,
)
from worker.contract import Sampling
from worker.engine.cache.prefix_cache import ID_BYTES
from worker.engine.cache.prefix_tree import PrefixGroup
from worker.engine.sequence import Chunk, Sequence

KEYS = (1 << 64) - 1  # all the bits of a key

# Fields that are parameters of requests as they are.
_NUMBERS = [
    field.name for field in SamplingRow.layout.fields if field.name in {*Sampling.__struct_fields__} - {"logprobs"}
]

_EDIT_ROW = SamplingRow.layout.fields[-1]
assert _EDIT_ROW.name == "edit_row", "the one field that is not the same for every token comes last"


def only_decodes(chunks: list[Chunk]) -> bool:
    """Whether each chunk is the last token of its sequence."""
    decodes = [num_tokens == 1 and draws for _, num_tokens, draws in chunks]  # in half the time of a generator
    return all(decodes)


def build_step(
    chunks: list[Chunk], block_tokens: int, draw_of: Callable[[Sequence], int] | None = None
) -> Step[NDArray[np.int32]]:
    """The step of ``chunks``, which have not been counted as launched.

    ``draw_of`` a sequence is the number of the draw of the previous step that gives the id that the host does not know.
    Rows of logits to draw from come first, then those after which log probabilities of prompts are reported.
    """
    if len(chunks) == 1 and is_known(chunks[0]):
        return _step_of_one(chunks, block_tokens)
    starts = np.array([sequence.num_computed for sequence, _, _ in chunks], np.int32)
    counts = np.array([num_tokens for _, num_tokens, _ in chunks], np.int32)
    query_starts = np.zeros(len(chunks) + 1, np.int32)
    counts.cumsum(out=query_starts[1:])
    rows = np.repeat(np.arange(len(chunks), dtype=np.int32), counts)
    positions = np.arange(query_starts[-1], dtype=np.int32) + (starts - query_starts[:-1])[rows]
    block_tables = _block_tables(chunks)
    return Step(
        token_ids=_token_ids(chunks, starts + counts, query_starts, draw_of),
        positions=positions,
        slots=block_tables[rows, positions // block_tokens] * block_tokens + positions % block_tokens,
        sequence_rows=rows,
        query_starts=query_starts,
        context_lengths=starts + counts,
        sequence_lengths=np.array([sequence.num_tokens for sequence, _, _ in chunks], np.int32),
        block_tables=block_tables,
        logit_rows=np.concatenate(
            [query_starts[1:][[draws for _, _, draws in chunks]] - 1, *_prompt_rows(chunks, query_starts)]
        ),
        states=_state_rows(chunks),
        has_short_chunks=bool(counts.min() <= SHORT_CHUNK),
    )


def is_known(chunk: Chunk) -> bool:
    """Whether all its ids are known and nobody wants log probabilities of its prompt."""
    sequence, num_tokens, _ = chunk
    return sequence.prompt_logprobs is None and sequence.num_computed + num_tokens <= len(sequence.token_ids)


def _step_of_one(chunks: list[Chunk], block_tokens: int) -> Step[NDArray[np.int32]]:
    """The same of one chunk, as of an idle engine's only request: in a third of the time, before the device begins."""
    ((sequence, num_tokens, draws),) = chunks
    start, block_table = sequence.num_computed, np.array(sequence.block_ids, np.int32)
    end = start + num_tokens
    return Step(
        token_ids=known_ids(sequence, start, end),
        positions=np.arange(start, end, dtype=np.int32),
        slots=slots_of(block_table, start, end, block_tokens),
        sequence_rows=np.zeros(num_tokens, np.int32),
        query_starts=np.array([0, num_tokens], np.int32),
        context_lengths=np.array([end], np.int32),
        sequence_lengths=np.array([sequence.num_tokens], np.int32),
        block_tables=block_table[None],
        logit_rows=np.array([num_tokens - 1] if draws else [], np.int32),
        states=_state_rows(chunks),
        has_short_chunks=num_tokens <= SHORT_CHUNK,
    )


def _token_ids(
    chunks: list[Chunk],
    ends: NDArray[np.int32],
    query_starts: NDArray[np.int32],
    draw_of: Callable[[Sequence], int] | None,
) -> NDArray[np.int32]:
    """The tokens of a step, of which each chunk's end at one of ``ends`` in its sequence."""
    num_known = np.array([len(sequence.token_ids) for sequence, _, _ in chunks])
    tokens, is_unknown = np.empty(query_starts[-1], np.int32), ends > num_known
    unknown = is_unknown.nonzero()[0]
    if unknown.size:  # most chunks are a token that is being drawn
        assert draw_of is not None, "an id that only the device knows"
        draws = np.array([draw_of(chunks[index].sequence) for index in unknown.tolist()], np.int32)
        tokens[query_starts[1:][unknown] - 1] = encode_draw(draws)
    is_left = ~is_unknown | (query_starts[1:] - query_starts[:-1] > 1)
    for index in is_left.nonzero()[0].tolist():
        (sequence, num_tokens, _), at = chunks[index], int(query_starts[index])
        ids = known_ids(sequence, int(ends[index]) - num_tokens, int(ends[index]))
        tokens[at : at + ids.size] = ids
    return tokens


def known_ids(sequence: Sequence, start: int, end: int) -> NDArray[np.int32]:
    """Those of a sequence's ids from ``start`` to ``end`` that are known."""
    if ID_BYTES * end <= len(sequence.packed_ids):
        return np.frombuffer(sequence.packed_ids, np.int32, end - start, ID_BYTES * start)
    return np.array(sequence.token_ids[start:end], np.int32)


def slots_of(block_table: NDArray[np.int32], start: int, end: int, block_tokens: int) -> NDArray[np.int32]:
    """KV slots of a sequence's tokens from ``start`` to ``end``."""
    first_block, offset = divmod(start, block_tokens)
    assert end <= block_table.size * block_tokens, "tokens beyond a sequence's blocks"
    slots: NDArray[Any] = (block_table[first_block:] * block_tokens)[:, None] + np.arange(block_tokens, dtype=np.int32)
    return slots.ravel()[offset : offset + end - start]


def _block_tables(chunks: list[Chunk]) -> NDArray[np.int32]:
    """The blocks of each chunk's sequence, and zeros behind them; all at once, as NumPy takes long for single rows."""
    if len(chunks) == 1:
        return np.array([chunks[0].sequence.block_ids], np.int32)
    lengths = np.array([len(sequence.block_ids) for sequence, _, _ in chunks])
    tables = np.zeros((len(chunks), lengths.max()), np.int32)
    block_ids = chain.from_iterable([sequence.block_ids for sequence, _, _ in chunks])
    tables[np.arange(tables.shape[1]) < lengths[:, None]] = np.fromiter(block_ids, np.int32, int(lengths.sum()))
    return tables


def build_prefix_groups(
    groups: list[PrefixGroup], row_of: Mapping[Sequence, int]
) -> PrefixGroups[NDArray[np.int32]] | None:
    """The ``groups`` of sequences whose rows in a step are known; None without any."""
    if not groups:
        return None
    sizes = np.array([len(group.sequences) for group in groups])
    rows = np.stack([np.cumsum(sizes) - sizes, sizes, [group.num_tokens for group in groups]], axis=1)
    members = [row_of[sequence] for group in groups for sequence in group.sequences]
    return PrefixGroups(rows.astype(np.int32), np.array(members, np.int32))


def _state_rows(chunks: list[Chunk]) -> StateRows[NDArray[np.int32]] | None:
    """Where the chunks' states are; None without recurrent layers, where no sequence has a state slot."""
    if chunks[0].sequence.state_slot is None:
        return None
    rows = np.array([state_row(sequence) for sequence, _, _ in chunks], np.int32)
    return StateRows(np.ascontiguousarray(rows[:, 0]), np.ascontiguousarray(rows[:, 1]))


def state_row(sequence: Sequence) -> tuple[int, int]:
    """Slot and source of a sequence's state, as `StateRows` has them; -1 of what there is none of."""
    slot, source = sequence.state_slot, sequence.state_source
    return -1 if slot is None else slot, -1 if source is None else source


def _prompt_rows(chunks: list[Chunk], query_starts: NDArray[np.int32]) -> Iterator[NDArray[np.int32]]:
    """Tokens of the step after which log probabilities of a prompt are to be reported."""
    for (sequence, num_tokens, _), start in zip(chunks, query_starts.tolist(), strict=False):
        if sequence.prompt_logprobs is not None and (positions := sequence.unreported(num_tokens)):
            yield np.array(positions, np.int32) + (start - sequence.num_computed)


class PromptTokens(NamedTuple):
    """Tokens of one chunk's prompt whose log probabilities are to be reported, each with ``num_top`` alternatives."""

    token_ids: list[int]
    num_top: int


def prompt_tokens(chunks: list[Chunk]) -> list[PromptTokens]:
    """What of each chunk's prompt is to be reported, of most chunks nothing; in the order of the rows of logits."""
    return [
        _NO_TOKENS if sequence.prompt_logprobs is None else _prompt_tokens(sequence, sequence.unreported(num_tokens))
        for sequence, num_tokens, _ in chunks
    ]


_NO_TOKENS = PromptTokens([], 0)


def _prompt_tokens(sequence: Sequence, positions: range) -> PromptTokens:
    token_ids = sequence.token_ids[positions.start + 1 : positions.stop + 1] if positions else []
    return PromptTokens(token_ids, sequence.sampling.prompt_logprobs or 0)


def build_report_params(prompts: list[PromptTokens]) -> SamplingParams[NDArray[Any]]:
    """For rows of logits of which nothing is drawn: what of each is reported."""
    num_tops = [prompt.num_top for prompt in prompts for _ in prompt.token_ids]
    rows = np.frombuffer(GREEDY_ROW * len(num_tops), SAMPLING_ROW).copy()
    rows["logprobs"] = num_tops
    return SamplingParams(rows, np.zeros(len(num_tops), np.int64))


def build_sampling_params(
    sequences: list[Sequence], edit_row_of: Callable[[Sequence], int]
) -> SamplingParams[NDArray[Any]]:
    """How the next token of each is drawn; ``edit_row_of`` a sequence is its row of what edits logits, or -1."""
    rows = b"".join([build_sampling_row(sequence, edit_row_of(sequence)) for sequence in sequences])
    return SamplingParams(
        rows=np.frombuffer(rows, SAMPLING_ROW),
        output_positions=np.array([sequence.num_output for sequence in sequences], np.int64),
    )


def build_sampling_row(sequence: Sequence, edit_row: int) -> bytes:
    """The `SamplingRow` of a sequence; it keeps all but ``edit_row``, as that is the same for every token."""
    row = sequence.sampling_row
    if row is None:
        options = sequence.sampling
        row = sequence.sampling_row = SamplingRow(
            key=draw_key(sequence),
            logprobs=-1 if options.logprobs is None else options.logprobs,
            num_biases=len(sequence.biases),
            num_banned=len(options.stop_token_ids) if options.min_tokens else 0,
            edit_row=-1,
            **{name: getattr(options, name) for name in _NUMBERS},
        )
    return row if edit_row < 0 else row[: _EDIT_ROW.offset] + edit_row.to_bytes(4, "little")


def draw_key(sequence: Sequence) -> int:
    """The key of its random numbers: choices of a request draw with consecutive seeds."""
    return (sequence.sampling.seed + sequence.choice) & KEYS
