"""The scheduler over a model with recurrent layers."""

from __future__ import annotations

import zlib
from collections import deque
from typing import NamedTuple

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from worker.contract import FinishReason, Sampling
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Chunk, Sequence

BLOCK_TOKENS = 4


def scheduler(**sizes: int) -> Scheduler:
    defaults = {"num_blocks": 32, "block_tokens": BLOCK_TOKENS, "step_tokens": 32, "max_sequences": 4, "num_states": 12}
    return Scheduler(**{**defaults, **sizes})


def sequence(token_ids: list[int], *, max_output: int = 8, priority: int = 0, name: str = "r") -> Sequence:
    sampling = Sampling(max_tokens=max_output, stop_token_ids=(2,))
    return Sequence(name, 0, sampling, priority, list(token_ids), len(token_ids), max_output)


def run(machine: Scheduler, token_id: int = 1) -> dict[str, int]:
    """One step; how many tokens of which sequence it computed."""
    chunks = machine.plan()
    machine.launch(chunks)
    for chunk in chunks:
        if chunk.draws:
            machine.append(chunk.sequence, token_id)
            if chunk.sequence.finish_reason is not None:
                machine.remove(chunk.sequence)
    machine.check_invariants()
    return {chunk.sequence.request_id: chunk.num_tokens for chunk in chunks}


def test_a_prompt_is_cut_where_its_snapshot_is_kept():
    machine = scheduler()
    machine.add(sequence(list(range(11))))
    assert [run(machine) for _ in range(3)] == [{"r": 8}, {"r": 3}, {"r": 1}]


def test_an_equal_prompt_goes_on_from_the_snapshot():
    machine = scheduler()
    machine.add(sequence(list(range(11)), name="a"))
    assert run(machine) == {"a": 8}
    machine.add(sequence(list(range(11)), name="b"))
    assert run(machine) == {"a": 3, "b": 3}
    assert machine.num_prefix_hit_tokens == 8


def test_at_least_one_token_is_computed_of_a_prompt_that_is_known_completely():
    machine = scheduler(rewrites_blocks=True)
    for name in "ab":
        machine.add(sequence(list(range(8)), name=name))
        for _ in range(2):
            run(machine)
    assert machine.num_prefix_hit_tokens == 4


def test_a_longer_conversation_goes_on_from_the_end_of_its_last_prompt():
    machine = scheduler()
    machine.add(sequence(list(range(10)), name="first", max_output=6))
    while machine.running or machine.waiting:
        run(machine)
    machine.add(sequence([*range(10), *[1] * 6, 7, 7], name="next"))
    run(machine)
    assert machine.num_prefix_hit_tokens == 8


def test_where_two_prompts_part_the_second_keeps_a_snapshot_for_the_third():
    machine = scheduler(num_blocks=64)
    computed = []
    for number in range(3):
        machine.add(sequence([*range(12), 100 + number, *range(200, 207)], name=str(number)))
        steps = [run(machine), run(machine), run(machine)]
        computed.append([step[str(number)] for step in steps])
    assert computed == [[16, 4, 1], [12, 4, 4], [4, 4, 1]]


def test_other_choices_wait_for_the_first_one_and_go_on_from_its_snapshot():
    machine = scheduler()
    leader, follower = sequence(list(range(10)), name="c0"), sequence(list(range(10)), name="c1")
    follower.leader = leader
    machine.add(leader)
    machine.add(follower)
    assert [run(machine) for _ in range(3)] == [{"c0": 8}, {"c0": 2}, {"c0": 1, "c1": 2}]


def test_a_preempted_sequence_goes_on_from_a_snapshot():
    machine = scheduler(num_blocks=6)
    machine.add(sequence(list(range(8)), name="first", max_output=12))
    machine.add(sequence(list(range(50, 58)), name="second", max_output=12))
    while not machine.num_preemptions:
        run(machine)
    preempted = machine.waiting[0]
    assert (preempted.request_id, preempted.state_slot) == ("second", None)
    for each in machine.running:
        each.finish_reason = "abort"
        machine.remove(each)
    run(machine)
    assert preempted.num_prefix_hits == 4


def test_a_restarted_sequence_begins_without_a_state():
    machine = scheduler()
    each = sequence(list(range(9)))
    machine.add(each)
    run(machine)
    run(machine)
    machine.restart(each, b"other")
    machine.check_invariants()
    assert run(machine) == {"r": 8}
    assert each.num_computed == 8 and machine.num_prefix_hit_tokens == 0


class Launched(NamedTuple):
    """A chunk of a step that has not run."""

    sequence: Sequence
    start: int
    tokens: tuple[int, ...]
    """All of its sequence until its end."""
    next_id: int | None
    """What it draws."""
    slot: int
    source: int | None


class RandomTraffic(RuleBasedStateMachine):
    """Random adds, aborts and steps, up to three of which are in flight; each runs when its draws are asked for.

    A shadow of the slots says after which tokens each one holds the state.
    """

    NUM_BLOCKS, MAX_SEQUENCES, LONGEST, DEPTH = 10, 3, 24, 3

    def __init__(self) -> None:
        super().__init__()
        self.in_flight: deque[list[Launched]] = deque()
        self.shadow: dict[int, tuple[int, ...]] = {}
        self.live: dict[Sequence, list[int]] = {}  # with all tokens, also those that the scheduler does not know yet

    @initialize(num_snapshots=st.integers(0, 5))
    def begin(self, num_snapshots: int) -> None:
        self.machine = scheduler(
            num_blocks=self.NUM_BLOCKS,
            step_tokens=9,
            max_sequences=self.MAX_SEQUENCES,
            num_states=self.MAX_SEQUENCES + num_snapshots,
        )

    @rule(
        prompt=st.lists(st.integers(0, 1), min_size=1, max_size=LONGEST - 8),
        max_output=st.integers(1, 8),
        priority=st.integers(0, 2),
        num_choices=st.integers(1, 3),
    )
    def add(self, prompt: list[int], max_output: int, priority: int, num_choices: int) -> None:
        leader = None
        for _ in range(num_choices):
            new = sequence(prompt, max_output=max_output, priority=priority)
            new.leader, leader = leader, leader or new
            self.machine.add(new)
            self.live[new] = list(prompt)

    @rule(index=st.integers(0, 20), reason=st.sampled_from(["abort", "error"]))
    def end(self, index: int, reason: FinishReason) -> None:
        if index < len(self.live):
            self.remove(list(self.live)[index], reason)

    @rule(num_steps=st.integers(1, 5))
    def step(self, num_steps: int) -> None:
        for _ in range(num_steps):
            if len(self.in_flight) == self.DEPTH:
                self.collect()
            chunks = self.machine.plan(ahead=len(self.in_flight))
            if chunks:
                self.in_flight.append([self.launched(chunk) for chunk in chunks])
                self.machine.launch(chunks)
            elif self.in_flight:
                self.collect()
            else:
                assert not self.live, "a plan is empty only when there is nothing to do"
            self.machine.check_invariants()

    def launched(self, chunk: Chunk) -> Launched:
        each, tokens = chunk.sequence, self.live[chunk.sequence]
        known = tuple(tokens[: each.num_computed + chunk.num_tokens])
        next_id = zlib.crc32(bytes(known)) % 9 % 3 if chunk.draws else None  # 2 ends it
        if next_id is not None:
            tokens.append(next_id)
        assert each.state_slot is not None
        return Launched(each, each.num_computed, known, next_id, each.state_slot, each.state_source)

    @precondition(lambda self: self.in_flight)
    @rule()
    def collect(self) -> None:
        step = self.in_flight.popleft()
        for chunk in step:
            before = () if chunk.source is None else self.shadow[chunk.source]
            assert before == chunk.tokens[: chunk.start], "a state of other tokens than those before"
        slots = [chunk.slot for chunk in step]
        assert len(set(slots)) == len(slots), "two sequences have one slot"
        for chunk in step:
            assert chunk.slot not in [other.source for other in step if other is not chunk], "written and read at once"
            self.shadow[chunk.slot] = chunk.tokens
        for chunk in step:
            if chunk.next_id is not None and chunk.sequence in self.live:
                self.machine.append(chunk.sequence, chunk.next_id)
                if chunk.sequence.finish_reason is not None:
                    self.remove(chunk.sequence, chunk.sequence.finish_reason)

    def remove(self, each: Sequence, reason: FinishReason) -> None:
        each.finish_reason = reason
        del self.live[each]
        self.machine.remove(each)

    @invariant()
    def bookkeeping_holds(self) -> None:
        self.machine.check_invariants()

    def teardown(self) -> None:
        """Everybody comes to an end, and nothing leaks."""
        bound = 2 * (len(self.live) + 1) * (self.MAX_SEQUENCES + 1) * self.LONGEST
        for _ in range(bound):
            if self.live:
                self.step(1)
        assert not self.live, "a sequence did not end within the bound"
        if hasattr(self, "machine"):
            assert self.machine.cache.block_tables.pool.num_used == self.machine.cache.num_states_used == 0


TestRandomTraffic = RandomTraffic.TestCase
TestRandomTraffic.settings = settings(max_examples=80, stateful_step_count=40)
