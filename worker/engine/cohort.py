"""Sequences that go on together, each by one token in every step: the steps are counted, and not each one's tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from collections.abc import Sequence as Series
from dataclasses import dataclass
from typing import NamedTuple, TypeVar, cast

from worker.engine.sequence import Chunk, Sequence, StepClock

Result = TypeVar("Result")


class Draw(NamedTuple):
    """A token drawn for one sequence; ``logprobs`` is the record of its log probabilities, if they are wanted.

    If they are not, runners give the id alone, as there are hundreds.
    """

    token_id: int
    logprobs: bytes | None


@dataclass(frozen=True, slots=True, eq=False)
class DrawnTokens:
    """What a step drew that drew for each of its chunks: ids, and the records of those that want log probabilities."""

    ids: list[int]
    logprobs: list[bytes]

    def one_by_one(self, chunks: list[Chunk]) -> list[int | Draw]:
        """What was drawn for each of its ``chunks``."""
        records = iter(self.logprobs)
        return [
            token_id if sequence.sampling.logprobs is None else Draw(token_id, next(records))
            for token_id, (sequence, _, _) in zip(self.ids, chunks, strict=True)
        ]


class StepInFlight(NamedTuple):
    """A step that was launched: its number, and its chunks, those of the cohort first."""

    number: int
    members: list[Chunk]
    others: list[Chunk]

    @property
    def chunks(self) -> list[Chunk]:
        """All of them."""
        return self.members + self.others


class _Columns:
    """Of all members, what a token is appended to, and which ids are looked for."""

    def __init__(self, sequences: list[Sequence]) -> None:
        self.token_ids = [sequence.token_ids for sequence in sequences]
        self.logprobs = [each.unsent_logprobs for each in sequences if each.sampling.logprobs is not None]
        self.stop_ids = frozenset().union(*{sequence.sampling.stop_token_ids for sequence in sequences})


FEWEST_STARTS = 12
"""Sequences that start together where more wait than there are places."""
MOST_PUT_OFF = 10
"""Steps that a free place waits for others, at most."""
LONG_STEPS_DEPTH = 2
"""So few steps may be in flight where one takes the device long: then one that starts some is hardly longer."""
MOST_LONG = 8
"""Steps after each other of which that is said, before all are taken to be long: one that starts many is, too."""


class StartGrouping:
    """Has sequences start together, so that most steps are of a cohort alone.

    Of hundreds that run, one or two end in each step. If others started in their places at once, each step would start
    some, which takes longer than to decode only: of a small model an H200 then gives a seventh less.
    """

    def __init__(self) -> None:
        self._num_put_off = self._num_long = 0

    def starts(self, num_places: int, num_waiting: int, depth: int) -> bool:
        """Whether those that wait start with this step; ``depth`` is how many steps may be in flight now."""
        self._num_long = self._num_long + 1 if depth <= LONG_STEPS_DEPTH else 0
        can_wait = self._num_put_off < MOST_PUT_OFF and self._num_long < MOST_LONG
        is_early = num_waiting > num_places and num_places < FEWEST_STARTS and can_wait
        self._num_put_off = self._num_put_off + (num_places > 0) if is_early else 0
        return not is_early


class Cohort:
    """The running sequences of which every step computes the last token and draws the next one.

    Most steps do nothing else for most of them. So their tokens are counted by one clock, and what is to be done for a
    sequence is noted with the number of the step: with the one before which it needs another block or must not go on,
    and with the one whose draw fills a block or is its last. A stop id is the one end that nobody can foresee.

    Steps are numbered by the clock in the order of their launch. A note of a sequence that has left is of no harm: it
    has whoever reads it look at a sequence for which there is nothing to do.
    """

    def __init__(self, block_tokens: int, recompute_at: int | None) -> None:
        """``recompute_at``: see `worker.model.registry.Model`."""
        self.clock = StepClock()
        self._block_tokens = block_tokens
        self._recompute_at = recompute_at
        self._members: dict[Sequence, Chunk] = {}
        self.num_constrained = 0
        """How many of the members have a constraint."""
        self._chunks: list[Chunk] = []
        self._is_current = True  # whether `_chunks` are those of the members
        self._columns: _Columns | None = None
        self._to_plan: dict[int, dict[Sequence, None]] = {}
        self._to_read: dict[int, dict[Sequence, None]] = {}

    def __len__(self) -> int:
        return len(self._members)

    def __contains__(self, sequence: Sequence) -> bool:
        return sequence in self._members

    @property
    def chunks(self) -> list[Chunk]:
        """What a step computes of the members: the same list, which nobody changes, as long as these are the same."""
        if not self._is_current:
            self._chunks = list(self._members.values())
            self._columns, self._is_current = None, True
        return self._chunks

    @property
    def due(self) -> list[Sequence]:
        """The members that may need more for the next step than its launch, or had better not be in it."""
        return [each for each in self._to_plan.get(self.clock.num_steps, ()) if each in self._members]

    @staticmethod
    def takes(sequence: Sequence) -> bool:
        """Whether nothing but a token has to be said of its steps: no prompt, no state in another slot."""
        is_plain = sequence.prompt_logprobs is None and sequence.num_pending == 1
        return is_plain and sequence.state_source == sequence.state_slot

    def join(self, sequence: Sequence, chunk: Chunk) -> None:
        """A sequence goes on by ``chunk``, one token, in the next step and in those after it, until it leaves."""
        assert self.takes(sequence), "a sequence of which more has to be said"
        sequence.start_clock(self.clock)
        self._members[sequence] = chunk
        self.num_constrained += sequence.constraint is not None
        self._is_current = False
        self._note_plan(sequence)
        self._note_read(sequence, self.clock.num_steps - 1, sequence.num_tokens)

    def leave(self, sequence: Sequence) -> Chunk:
        """It is not in the next step; returns the chunk with which it came."""
        sequence.stop_clock()
        self.num_constrained -= sequence.constraint is not None
        self._is_current = False
        return self._members.pop(sequence)

    def launch(self, chunks: list[Chunk]) -> StepInFlight:
        """A step of ``chunks`` is launched. The cohort's come first, and those that were `due` have what they need."""
        due = self.due
        self._to_plan.pop(self.clock.num_steps, None)
        for sequence in due:
            self._note_plan(sequence)
        num_members = len(self)
        members = chunks if len(chunks) == num_members else chunks[:num_members]
        step = StepInFlight(self.clock.num_steps, members, chunks[num_members:])
        self.clock.num_steps += 1
        return step

    def append(
        self, step: StepInFlight, results: Series[Result] | DrawnTokens, ended: Collection[Sequence] = ()
    ) -> tuple[int, list[tuple[Sequence, Result]], Collection[Sequence]]:
        """Append what a step drew to its members, all of them but those of whom more may have to be done, or said.

        Returns how many there are, and the others of the step with what it did for them, but those that have ended;
        and some to whom it was appended and who may have filled a block. ``ended`` are those that end with this token,
        besides.
        """
        due = self._to_read.pop(step.number, {})
        for sequence in due:
            if sequence.finish_reason is None:  # else it would be noted for ever
                self._note_read(sequence, step.number, len(sequence.token_ids) + 1)
        filling = {each: None for each in due if each in self and not self._ends(each, len(each.token_ids) + 1)}
        ending = {each: None for each in due if each not in filling} | dict.fromkeys(ended)
        if isinstance(results, DrawnTokens):
            if step.members is self.chunks and not step.others and self._append_all(results):
                left = [(sequence, cast(Result, self._take_back(sequence))) for sequence in ending if sequence in self]
                return len(step.members) - len(left), left, [each for each in filling if each not in ending]
            results = cast("list[Result]", results.one_by_one(step.chunks))
        num_appended, left = 0, []
        for (sequence, _, _), result in zip(step.members, results, strict=False):
            if sequence.finish_reason is not None:
                continue
            token_id = result.token_id if isinstance(result, Draw) else result
            is_stop = token_id in sequence.sampling.stop_token_ids
            if not isinstance(token_id, int) or is_stop or sequence in ending:
                left.append((sequence, result))
                filling.pop(sequence, None)
                continue
            num_appended += 1
            sequence.token_ids.append(token_id)
            if isinstance(result, Draw) and result.logprobs is not None:
                sequence.unsent_logprobs.append(result.logprobs)
        others = zip(step.others, results[len(step.members) :], strict=True)
        left += [(sequence, result) for (sequence, _, _), result in others if sequence.finish_reason is None]
        return num_appended, left, filling

    def _ends(self, sequence: Sequence, num_tokens: int) -> bool:
        """Whether one that is looked at ends with so many tokens, or outgrows what it was computed for."""
        return num_tokens >= sequence.most_tokens or num_tokens - 1 == self._recompute_at

    def _append_all(self, draws: DrawnTokens) -> bool:
        """Append what was drawn to each member; False: there is a stop id.

        That of each takes a third of the time here that a loop takes.
        """
        if self._columns is None:
            self._columns = _Columns(list(self._members))
        columns = self._columns
        if not columns.stop_ids.isdisjoint(draws.ids):
            return False
        deque(map(list.append, columns.token_ids, draws.ids), maxlen=0)
        deque(map(list.append, columns.logprobs, draws.logprobs), maxlen=0)
        return True

    def _take_back(self, sequence: Sequence) -> int | Draw:
        """What was appended last: with that begins what is to be done for a sequence by itself."""
        token_id = sequence.token_ids.pop()
        return token_id if sequence.sampling.logprobs is None else Draw(token_id, sequence.unsent_logprobs.pop())

    def disband(self) -> dict[Sequence, Chunk]:
        """All leave, while no step is in flight; returns their chunks."""
        self._to_plan.clear()
        self._to_read.clear()
        return {sequence: self.leave(sequence) for sequence in tuple(self._members)}

    def _note_plan(self, sequence: Sequence) -> None:
        num_tokens = sequence.num_tokens
        end = min(len(sequence.block_ids) * self._block_tokens + 1, sequence.most_tokens)
        if self._recompute_at is not None and num_tokens <= self._recompute_at:
            end = min(end, self._recompute_at + 1)
        assert end > num_tokens, "a step that somebody should have looked at before"
        self._to_plan.setdefault(self.clock.num_steps + end - num_tokens, {})[sequence] = None

    def _note_read(self, sequence: Sequence, step: int, num_tokens: int) -> None:
        """``step`` drew the last of the first ``num_tokens``."""
        if num_tokens >= sequence.most_tokens:
            return
        end = min((num_tokens // self._block_tokens + 1) * self._block_tokens, sequence.most_tokens)
        if self._recompute_at is not None and num_tokens <= self._recompute_at:
            end = min(end, self._recompute_at + 1)
        self._to_read.setdefault(step + end - num_tokens, {})[sequence] = None

    def check_invariants(self, running: Collection[Sequence]) -> None:
        """Members run and are counted by the clock, and what is to be done for each is noted with a step to come."""
        assert [chunk.sequence for chunk in self.chunks] == list(self._members)
        assert all(chunk.num_tokens == 1 and chunk.draws for chunk in self.chunks)
        assert {each for each in running if each.clock is not None} == self._members.keys()
        now = self.clock.num_steps
        assert all(step >= now for step in self._to_plan)
        for sequence in self._members:
            assert sequence.clock is self.clock and self.takes(sequence)
            left = len(sequence.block_ids) * self._block_tokens - sequence.num_tokens
            planned = [step - now for step, noted in self._to_plan.items() if sequence in noted]
            assert 0 <= min(planned) <= left + 1, "a block that nobody thinks of"
            read = [step for step, noted in self._to_read.items() if sequence in noted]
            tokens_left = sequence.most_tokens - sequence.num_tokens
            assert not tokens_left or min(read) < now + min(self._block_tokens, tokens_left), "a block nobody fills"
