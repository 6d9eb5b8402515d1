"""Sequences that are counted together, against the same ones counted one by one."""

from __future__ import annotations

import random
import weakref
from collections import deque

import pytest

from tests.worker.engine.bracket_constraint import BracketConstraint
from worker.contract import Sampling
from worker.engine.cohort import Cohort, Draw, DrawnTokens, StartGrouping, StepInFlight
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Chunk, Sequence

BLOCK_TOKENS = 4
STOP_ID = 9


def decoding(num_tokens: int, *, max_output: int = 30) -> Sequence:
    """A sequence of which all but the last token is computed, with blocks for all of them."""
    token_ids = list(range(num_tokens))
    new = Sequence("r", 0, Sampling(max_tokens=max_output), 0, token_ids, num_tokens, max_output)
    new.num_computed = num_tokens - 1
    new.block_ids = list(range(-(-num_tokens // BLOCK_TOKENS)))
    return new


def cohort_of(*sequences: Sequence, recompute_at: int | None = None) -> Cohort:
    cohort = Cohort(BLOCK_TOKENS, recompute_at)
    for each in sequences:
        cohort.join(each, Chunk(each, 1, True))
    return cohort


def step(cohort: Cohort) -> set[Sequence]:
    """A step that is read at once; the sequences to look at before it, which get a block, or after it."""
    looked_at = set(cohort.due)
    for each in looked_at:
        each.block_ids.append(len(each.block_ids))
    launched = cohort.launch(cohort.chunks)
    num_appended, left, filling = cohort.append(launched, DrawnTokens([1] * len(launched.members), []))
    for each, token_id in left:
        each.append(token_id)
    assert num_appended + len(left) == len(launched.members)
    chunks = launched.members
    cohort.check_invariants([chunk.sequence for chunk in chunks])
    return looked_at | {each for each, _ in left} | set(filling)


def test_members_go_on_by_a_token_in_each_step_and_keep_their_numbers_when_they_leave() -> None:
    first, second = decoding(5), decoding(7)
    cohort = cohort_of(first, second)
    step(cohort)
    cohort.leave(first)
    step(cohort)
    step(cohort)
    assert (first.num_tokens, first.num_computed, first.num_unread) == (6, 5, 0)
    assert (second.num_tokens, second.num_computed, second.num_unread) == (10, 9, 0)
    assert first not in cohort and second in cohort and len(cohort) == 1
    first.launch(1, True)
    assert (first.num_tokens, first.num_unread) == (7, 1)


def test_the_list_of_chunks_is_another_one_only_when_the_members_are_others() -> None:
    first, second = decoding(5), decoding(7)
    cohort = cohort_of(first, second)
    chunks = cohort.chunks
    step(cohort)
    assert cohort.chunks is chunks
    cohort.leave(first)
    assert [chunk.sequence for chunk in cohort.chunks] == [second]
    assert [chunk.sequence for chunk in chunks] == [first, second], "a step in flight has its own"
    cohort.join(first, chunks[0])
    assert [chunk.sequence for chunk in cohort.chunks] == [second, first]


def test_a_member_is_looked_at_where_blocks_end_and_where_it_ends() -> None:
    only = decoding(5, max_output=9)  # 14 tokens
    cohort = cohort_of(only)
    looked_at = []
    while only.num_tokens < only.most_tokens:
        before = only.num_tokens
        if step(cohort):
            looked_at.append((before, only.num_tokens))
    assert looked_at == [(7, 8), (9, 10), (11, 12), (13, 14)], "full blocks, new blocks, and the last token"
    assert cohort.due == [only], "before the step that it must not be in"


def test_a_member_is_looked_at_before_it_outgrows_what_it_was_computed_for() -> None:
    only = decoding(5)
    cohort = cohort_of(only, recompute_at=6)
    assert not step(cohort)
    assert step(cohort) == {only}, "the draw that makes seven tokens of six"
    assert cohort.due == [only]


@pytest.mark.parametrize("is_together", [True, False])
def test_log_probabilities_go_with_the_ids_of_those_that_want_them(is_together: bool) -> None:
    silent, asking, ending = decoding(5), decoding(5), decoding(5)
    for each in (asking, ending):
        each.sampling = Sampling(max_tokens=30, logprobs=0, stop_token_ids=(9,))
    members = [silent, asking] if is_together else [silent, asking, ending]
    cohort = cohort_of(*members)
    launched = cohort.launch(cohort.chunks)
    records = [b"one", b"two"][: len(members) - 1]
    num_appended, left, _ = cohort.append(launched, DrawnTokens([7, 8, 9][: len(members)], records))
    assert (silent.token_ids[5:], asking.token_ids[5:], ending.token_ids[5:]) == ([7], [8], [])
    assert (silent.unsent_logprobs, asking.unsent_logprobs) == ([], [b"one"])
    assert (num_appended, left) == (2, [] if is_together else [(ending, Draw(9, b"two"))])


def test_of_whom_more_is_to_be_done_the_draw_is_told_with_its_log_probabilities() -> None:
    filling, ending = decoding(7), decoding(6, max_output=1)
    for each in (filling, ending):
        each.sampling = Sampling(max_tokens=30, logprobs=0)
    cohort = cohort_of(filling, ending)
    appended = cohort.append(cohort.launch(cohort.chunks), DrawnTokens([7, 8], [b"one", b"two"]))
    assert (*appended[:2], [*appended[2]]) == (1, [(ending, Draw(8, b"two"))], [filling])
    assert (len(filling.token_ids), filling.unsent_logprobs) == (8, [b"one"])
    assert (len(ending.token_ids), ending.unsent_logprobs) == (6, [])


def test_those_that_ended_while_a_step_was_in_flight_get_nothing_of_it() -> None:
    ended, other = decoding(5), decoding(6)
    cohort = cohort_of(ended, other)
    launched = cohort.launch(cohort.chunks)
    cohort.leave(ended)
    ended.finish_reason = "abort"
    assert cohort.append(launched, DrawnTokens([7, 8], []))[:2] == (1, [])
    assert (len(ended.token_ids), other.token_ids[6:]) == (5, [8])


def test_nothing_is_kept_of_those_that_have_ended() -> None:
    other, ended = decoding(7, max_output=100), decoding(5, max_output=90)
    ended.constraint = BracketConstraint(1000)
    kept = weakref.ref(ended.constraint)
    cohort = cohort_of(other, ended)
    step(cohort)
    ended.finish_reason = "stop"
    cohort.leave(ended)
    del ended
    for _ in range(2 * BLOCK_TOKENS):
        step(cohort)
    assert kept() is None and other in cohort


@pytest.mark.parametrize("wish", ["prompt_logprobs", "state", "prompt"])
def test_a_sequence_of_whose_steps_more_has_to_be_said_is_not_taken(wish: str) -> None:
    apart = decoding(5)
    assert Cohort.takes(apart)
    if wish == "prompt_logprobs":
        apart.prompt_logprobs = bytearray()
    elif wish == "state":
        apart.state_slot, apart.state_source = 1, 2
    else:
        apart.num_computed = 3
    assert not Cohort.takes(apart)


def test_those_of_a_cohort_that_disbands_are_counted_one_by_one_again() -> None:
    first, second = decoding(5), decoding(7)
    cohort = cohort_of(first, second)
    step(cohort)
    assert set(cohort.disband()) == {first, second}
    assert not cohort.chunks and not cohort.due
    assert (first.num_tokens, second.num_tokens) == (6, 8)
    cohort.check_invariants([])


class Traffic:
    """Requests that come, are aborted, end and are preempted at random, in a scheduler of few blocks."""

    def __init__(self, seed: int, *, counts_together: bool) -> None:
        self.chance = random.Random(seed)
        self.depth = self.chance.choice([1, 2, 3])
        self.recompute_at = self.chance.choice([None, 17])
        self.machine = Scheduler(
            num_blocks=self.chance.choice([16, 40, 200]),
            block_tokens=BLOCK_TOKENS,
            step_tokens=48,
            max_sequences=10,
            recompute_at=self.recompute_at,
            rewrites_blocks=self.chance.random() < 0.5,
            num_states=self.chance.choice([0, 0, 14]),
        )
        if not counts_together:
            self.machine.cohort.takes = lambda _sequence: False  # type: ignore[method-assign]
        self.live: dict[str, Sequence] = {}
        self.in_flight: deque[StepInFlight] = deque()
        self.num_arrived = self.most_members = 0

    def arrive(self) -> None:
        chance, leader = self.chance, None
        num_prompt, most = chance.randint(1, 20), chance.randint(1, 40)
        prompt = [chance.choice([1, 2]) for _ in range(num_prompt)]
        constraint = BracketConstraint(1000) if chance.random() < 0.1 else None
        sampling = Sampling(max_tokens=most, stop_token_ids=(STOP_ID,))
        self.num_arrived += 1
        for choice in range(chance.choice([1, 1, 2])):
            name = f"r{self.num_arrived}.{choice}"
            own = None if constraint is None else constraint.copy()
            new = Sequence(name, choice, sampling, chance.randint(0, 1), list(prompt), num_prompt, most, constraint=own)
            new.leader, leader = leader, leader or new
            self.live[name] = new
            self.machine.add(new)

    def abort(self) -> None:
        if self.live:
            self.end(self.chance.choice(list(self.live.values())), "abort")

    def end(self, sequence: Sequence, reason: str | None = None) -> None:
        sequence.finish_reason = reason or sequence.finish_reason  # type: ignore[assignment]
        self.machine.remove(sequence)
        del self.live[sequence.request_id]

    def step(self) -> None:
        machine = self.machine
        while len(self.in_flight) < self.depth and (chunks := machine.plan(ahead=len(self.in_flight))):
            self.in_flight.append(machine.launch(chunks))
            self.most_members = max(self.most_members, len(machine.cohort))
        if self.in_flight:
            self.read(self.in_flight.popleft())
        machine.finish_launch()
        machine.check_invariants()

    def read(self, launched: StepInFlight) -> None:
        """As the engine does, but what asks for more in the order of rank."""
        by_rank = sorted([chunk.sequence for chunk in launched.chunks if chunk.draws], key=lambda each: each.rank)
        drawn = {sequence: self.chance.choice([*[1, 2] * 6, STOP_ID]) for sequence in by_rank}
        ids = [drawn[chunk.sequence] if chunk.draws else None for chunk in launched.chunks]
        _, left, filling = self.machine.cohort.append(launched, ids if None in ids else DrawnTokens(ids, []))
        left = [(sequence, token_id) for sequence, token_id in left if token_id is not None]
        left += [(sequence, None) for sequence in filling]
        for sequence, token_id in sorted(left, key=lambda each: each[0].rank):
            if token_id is None:
                self.machine.cache.block_tables.publish_all_later([sequence])
                continue
            self.machine.append(sequence, token_id)
            if sequence.finish_reason is not None:
                self.end(sequence)
            elif self.recompute_at is not None and sequence.outgrows(self.recompute_at):
                self.machine.restart(sequence, b"long")

    @property
    def state(self) -> tuple[object, ...]:
        """All that a step may depend on."""
        machine = self.machine
        steps = [{chunk.sequence.request_id: chunk[1:] for chunk in launched.chunks} for launched in self.in_flight]
        sequences = [
            (name, each.token_ids, each.num_tokens, each.num_computed, each.block_ids, each.num_published)
            for name, each in self.live.items()
        ]
        waiting = [each.request_id for each in machine.waiting]
        return steps, sequences, waiting, machine.num_preemptions, machine.num_prefix_hit_tokens, machine.step_sizes


@pytest.mark.parametrize("seed", range(30))
def test_who_counts_changes_nothing(seed: int) -> None:
    together, one_by_one = Traffic(seed, counts_together=True), Traffic(seed, counts_together=False)
    for number in range(250):
        for traffic in (together, one_by_one):
            if number < 150 and traffic.chance.random() < 0.3:
                traffic.arrive()
            if traffic.chance.random() < 0.03:
                traffic.abort()
            traffic.step()
        assert together.state == one_by_one.state
    assert together.most_members > 2 and not one_by_one.most_members


def test_those_that_wait_for_places_start_together_and_nobody_else_waits() -> None:
    machine = Scheduler(
        num_blocks=4096, block_tokens=BLOCK_TOKENS, step_tokens=4096, max_sequences=80, rewrites_blocks=True
    )
    for number in range(110):  # of the first 80 one ends with each step
        most = 2 + number if number < 80 else 200
        machine.add(Sequence("r", 0, Sampling(max_tokens=most), 0, [number], 1, most))
    starts = []
    for _ in range(60):
        chunks = machine.plan(depth=3)
        starts.append(sum(sequence.num_output == 0 for sequence, _, _ in chunks))
        machine.launch(chunks)
        for sequence, _, _ in chunks:
            machine.append(sequence, 1)
            if sequence.finish_reason is not None:
                machine.remove(sequence)
        machine.check_invariants()
    assert [each for each in starts if each] == [80, 11, 11, 8], "the last 8 once there is a place for each"
    few = StartGrouping()
    assert few.starts(1, 1, 3) and few.starts(12, 100, 3)
    assert [few.starts(1, 2, 3) for _ in range(12)] == [False] * 10 + [True, False]
    assert not any(few.starts(0, 9, 3) for _ in range(30)), "where there is no place nothing is put off"


def test_where_steps_take_the_device_long_nobody_waits_for_others_to_start_with() -> None:
    few = StartGrouping()
    assert [few.starts(0, 9, 2) for _ in range(9)] == [False] * 7 + [True] * 2
    assert [few.starts(1, 9, depth) for depth in (2, 3, 2)] == [True, False, False], "the last may have started many"
