"""A runner on a `LateDevice` that compares what the device has, step by step, with plain steps of the same chunks."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from kernels.batch import GREEDY_ROW, SAMPLING_ROW, SamplingParams, Step
from kernels.logit_edits import count_tokens
from kernels.reference.sampling import log_probabilities
from orcd.errors import OrcdError
from tests.worker.engine.context_model import check_prefixes
from tests.worker.engine.cuda.checked_model import CheckedModel
from tests.worker.engine.recurrent_model import MULTIPLIERS, PRIMES
from tests.worker.logprob_records import read
from worker.engine.batch_builder import build_sampling_row, only_decodes, state_row
from worker.engine.cohort import Draw, DrawnTokens
from worker.engine.cuda.runner import CudaRunner
from worker.engine.logits.token_masks import num_mask_words
from worker.engine.runner import PromptReport, Result, Results
from worker.engine.sequence import Chunk, Sequence


@dataclass(slots=True, eq=False)
class PlainChunk:
    """What a step is to compute of a sequence, as the host knew it at the launch."""

    chunk: Chunk
    start: int
    known_ids: list[int]
    num_unread: int
    block_ids: list[int]
    state: tuple[int, int]
    row: int = -1  # of logits, and in decode steps of everything
    edit_row: int = -1
    mask: np.ndarray | None = None
    is_void: bool = False
    drawn_id: int | None = None
    logprob: float = 0.0

    @property
    def sequence(self) -> Sequence:
        return self.chunk.sequence

    @property
    def draws(self) -> bool:
        return self.chunk.draws and not self.is_void


@dataclass(slots=True, eq=False)
class PlainStep:
    chunks: list[PlainChunk]
    is_decode: bool
    has_failed: bool = False
    end: int = 0  # behind its checks in the device's queue


@dataclass(slots=True, eq=False)
class Checks:
    """What the device does is compared when it does it."""

    block_tokens: int
    step: PlainStep | None = None  # the one that it is at
    logits: np.ndarray | None = None  # from which it drew last
    params: SamplingParams | None = None
    drawn_ids: dict[Sequence, list[int]] = field(default_factory=lambda: defaultdict(list))
    counts: Counter[str] = field(default_factory=Counter)

    def tokens(self, plain: PlainChunk) -> list[int]:
        """All that the sequence has, those too that the host did not know."""
        drawn = self.drawn_ids[plain.sequence]
        return plain.known_ids + [max(token_id, 0) for token_id in drawn[len(drawn) - plain.num_unread :]]

    def check_step(self, step: Step, states: tuple[np.ndarray, np.ndarray] | None) -> None:
        plain = self.step
        assert plain is not None, "a step that nobody launched"
        if plain.has_failed:
            return
        rows = [each.row for each in plain.chunks] if plain.is_decode else list(range(len(plain.chunks)))
        assert np.flatnonzero(step.context_lengths > 0).tolist() == sorted(rows), "rows of others"
        for each, row in zip(plain.chunks, rows, strict=True):
            self._check_chunk(step, each, row)
            if states is not None:
                self._check_state(step, each, row, *states)
        if step.prefixes is not None:
            self.counts["groups"] += check_prefixes(step, step.prefixes, self.block_tokens)
        self.counts["decode" if plain.is_decode else "whole"] += 1

    def _check_chunk(self, step: Step, plain: PlainChunk, row: int) -> None:
        size, tokens, end = self.block_tokens, self.tokens(plain), plain.start + plain.chunk.num_tokens
        of_row = slice(step.query_starts[row], step.query_starts[row + 1])
        positions, num_blocks = range(plain.start, end), -(-end // size)
        assert step.token_ids[of_row].tolist() == tokens[plain.start : end]
        assert step.positions[of_row].tolist() == [*positions]
        assert step.slots[of_row].tolist() == [plain.block_ids[at // size] * size + at % size for at in positions]
        assert step.sequence_rows[of_row].tolist() == [row] * len(positions)
        assert step.block_tables[row, :num_blocks].tolist() == plain.block_ids[:num_blocks]
        assert (step.context_lengths[row], step.sequence_lengths[row]) == (end, len(tokens))

    def _check_state(self, step: Step, plain: PlainChunk, row: int, counts: np.ndarray, digests: np.ndarray) -> None:
        assert step.states is not None
        slot, source = plain.state
        assert (step.states.slots[row], step.states.sources[row]) == (slot, source)
        if source >= 0:
            digest = np.ones(len(PRIMES))
            for token_id in self.tokens(plain)[: plain.start]:
                digest = (digest * MULTIPLIERS + token_id + 1) % PRIMES
            assert (counts[source, 0], digests[source].tolist()) == (plain.start, digest.tolist())

    def check_draws(self, step: PlainStep, drawn: np.ndarray) -> None:
        assert step is self.step and self.params is not None
        for plain in step.chunks:
            if plain.draws:
                self._check_draw(plain, int(drawn[plain.row]), self.params)
        others = {*range(self.params.rows.shape[0])} - {plain.row for plain in step.chunks}
        if step.is_decode:
            assert {self.params.rows[row].tobytes() for row in others} <= {GREEDY_ROW}, (
                "work for a row that is nobody's"
            )

    def _check_draw(self, plain: PlainChunk, drawn_id: int, params: SamplingParams) -> None:
        assert self.logits is not None
        sequence, logits, tokens = plain.sequence, self.logits[plain.row], self.tokens(plain)
        expected = np.frombuffer(build_sampling_row(sequence, -1), SAMPLING_ROW).copy()
        expected["edit_row"] = plain.edit_row
        assert params.rows[plain.row].tobytes() == expected.tobytes()
        assert params.output_positions[plain.row] == len(tokens) - sequence.num_prompt
        if plain.mask is not None:
            allowed = np.unpackbits(plain.mask.view(np.uint8), bitorder="little")
            assert allowed[np.flatnonzero(~np.isneginf(logits))].all(), "an id that its constraint does not allow"
        elif sequence.constraint is None and not sequence.is_edited:
            assert not np.isneginf(logits).any(), "another one's mask"
        if sequence.is_penalised and -1 not in (drawn_id, *self.drawn_ids[sequence]):  # nobody counts it
            counts = count_tokens(tokens[: sequence.num_prompt], [*tokens[sequence.num_prompt :], drawn_id])
            words = np.zeros_like(params.edits.counts[plain.edit_row])
            words[counts["token_id"]] = counts["word"]
            assert (params.edits.counts[plain.edit_row] == words).all(), "counts of other tokens"
        values = np.empty_like(logits)
        log_probabilities(logits[None], out=values[None])
        plain.drawn_id, plain.logprob = drawn_id, float(values[drawn_id])
        self.drawn_ids[sequence].append(drawn_id)


class Differs(BaseException):
    """What is asserted here is no failure of a step, which an engine would lay to a request."""


@contextmanager
def asserting() -> Iterator[None]:
    try:
        yield
    except AssertionError as error:
        raise Differs(str(error)) from error


class CheckedRunner(CudaRunner):
    """Counts for itself what is in flight, and how far each sequence is. Constraints are `BracketConstraint`."""

    def __init__(self, model: CheckedModel, *arguments: Any, **options: Any) -> None:
        super().__init__(model, *arguments, **options)
        self.checks = Checks(self._limits.block_tokens)
        self._device = model.device
        self._steps: deque[PlainStep] = deque()
        self._open_step: PlainStep | None = None
        self._ends: dict[Sequence, tuple[list[int], int]] = {}  # a table, and how many tokens are computed there
        self._latest: tuple[list[Chunk], list[Chunk]] = [], []
        model.sampling = self._rows.sampling
        self._device.enqueue(lambda: setattr(model, "checks", self.checks))  # behind what is captured

    @asserting()
    def launch(self, chunks: list[Chunk], *, draws: bool = True) -> None:
        same, copy = self._latest
        assert same == copy, "a list that somebody changed"
        self.checks.counts["same list"] += same is chunks
        self._latest = chunks, list(chunks)
        step = PlainStep([self._plain(chunk) for chunk in chunks], only_decodes(chunks))
        self._device.enqueue(lambda: setattr(self.checks, "step", step))
        if draws:
            self._note_masks(step)
        try:
            super().launch(chunks, draws=draws)
        except Exception:
            step.has_failed = True
            self.checks.counts["failed launches"] += 1
            raise
        for index, plain in enumerate(step.chunks):
            if step.is_decode:
                plain.row = int(self._batch_slots._chunk_rows[index])
            if plain.chunk.draws:
                plain.edit_row = self._edit_rows.row_of(plain.sequence)
            self._ends[plain.sequence] = plain.sequence.block_ids, plain.start + plain.chunk.num_tokens
        if draws:
            self._follow(step)
        else:
            self._open_step = step

    @asserting()
    def draw(self, void: Collection[Sequence]) -> None:
        step, self._open_step = self._open_step, None
        assert step is not None
        for plain in step.chunks:
            if plain.sequence in void:
                plain.is_void = True
                self._ends[plain.sequence] = self._ends[plain.sequence][0], plain.start
        self.checks.counts += Counter({"void": len(void), "all void": int(len(void) == len(step.chunks))})
        self._note_masks(step)
        try:
            super().draw(void)
        except Exception:
            self.checks.counts["failed draws"] += 1
            for plain in step.chunks:
                del self._ends[plain.sequence]
            raise
        self._follow(step)

    @asserting()
    def collect(self) -> Results:
        step = self._steps.popleft()
        results = super().collect()
        self._device.run_until(step.end)
        chunks = [plain.chunk for plain in step.chunks]
        each = results.one_by_one(chunks) if isinstance(results, DrawnTokens) else results
        for plain, result in zip(step.chunks, each, strict=True):
            self._check_result(plain, result.rest if isinstance(result, PromptReport) else result)
        return results

    def _plain(self, chunk: Chunk) -> PlainChunk:
        sequence, num_tokens, draws = chunk
        in_flight = [plain for step in self._steps for plain in step.chunks if plain.sequence is sequence]
        num_unread = sum(plain.draws for plain in in_flight)
        table, end = self._ends.get(sequence, ([], 0))
        start = end if table is sequence.block_ids else sequence.num_computed
        assert (sequence.num_computed, sequence.num_unread) == (start, num_unread)
        assert draws == (start + num_tokens == len(sequence.token_ids) + num_unread)
        if sequence.constraint is None:
            drawn = self.checks.drawn_ids[sequence]
            read = drawn[: len(drawn) - sum(plain.drawn_id is not None for plain in in_flight)]
            assert sequence.token_ids[len(sequence.token_ids) - len(read) :] == read, "what others drew"
        else:
            taken = sequence.constraint.token_ids
            assert taken == sequence.token_ids[sequence.num_prompt :], "a token that its constraint has not taken"
        known = list(sequence.token_ids), num_unread, list(sequence.block_ids)
        return PlainChunk(chunk, start, *known, state_row(sequence))

    def _note_masks(self, step: PlainStep) -> None:
        for plain in step.chunks:
            sequence = plain.sequence
            if sequence.constraint is not None and plain.draws and sequence.finish_reason is None:
                plain.mask = np.zeros(num_mask_words(self._limits.vocab_size), np.uint32)
                sequence.constraint.write_mask(plain.mask.data, sequence.num_left)

    def _follow(self, step: PlainStep) -> None:
        """A step was launched: rows from which is drawn are known, and checked behind its draw."""
        self._steps.append(step)
        for plain, row in zip(step.chunks, self._in_flight[-1].rows.tolist(), strict=True):
            assert ((row >= 0) == plain.draws and row in (-1, plain.row)) or not step.is_decode
            plain.row = plain.row if step.is_decode else row
        if any(plain.draws for plain in step.chunks):
            self._device.enqueue(lambda: self.checks.check_draws(step, self._rows.drawn))
        step.end = len(self._device._queue)

    def _check_result(self, plain: PlainChunk, result: Result) -> None:
        if not plain.draws:
            assert result is None
        elif isinstance(result, Draw):
            num_top = plain.sequence.sampling.logprobs
            assert num_top is not None and result.token_id == plain.drawn_id
            (told,) = read(result.logprobs, num_top)
            assert abs(told.logprob - plain.logprob) < 1e-3, "log probabilities of another one"
        elif not isinstance(result, OrcdError):
            assert result == plain.drawn_id
