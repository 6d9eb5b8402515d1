"""Sequences with a constraint among others that come and go at random: none of them stands still."""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest

from tests.worker.engine.bracket_constraint import BracketConstraint
from worker.contract import Sampling
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Chunk, Sequence

NUM_ARRIVALS = 60
LONGEST_WAIT = 8
"""Steps in a row without a sequence that runs: others end, begin and are preempted meanwhile."""


class Traffic:
    """Keeps ``depth`` steps in flight; blocks are few, so that some are preempted."""

    def __init__(self, seed: int, depth: int) -> None:
        self.chance, self.depth = random.Random(seed), depth
        self.machine = Scheduler(
            num_blocks=40, block_tokens=4, step_tokens=64, max_sequences=8, rewrites_blocks=depth > 1
        )
        self.share = self.chance.choice([0.1, 0.3, 0.5, 0.9])
        self.live: list[Sequence] = []
        self.in_flight: deque[list[Chunk]] = deque()
        self.waits: Counter[str] = Counter()

    def arrive(self, number: int) -> None:
        num_prompt, most = self.chance.randint(1, 30), self.chance.randint(1, 40)
        constraint = BracketConstraint(1000) if self.chance.random() < self.share else None
        prompt = [self.chance.choice([1, 2])] * num_prompt
        sampling = Sampling(max_tokens=most)
        new = Sequence(f"r{number}", 0, sampling, 0, prompt, num_prompt, most, constraint=constraint)
        self.machine.add(new)
        self.live.append(new)

    def step(self) -> None:
        while len(self.in_flight) < self.depth:
            chunks = self.machine.plan(ahead=len(self.in_flight))
            if not chunks:
                assert self.in_flight or not self.live, "nobody can go on"
                break
            self.machine.launch(chunks)
            self.in_flight.append(chunks)
            self.count_waits({chunk.sequence.request_id for chunk in chunks})
        for chunk in self.in_flight.popleft() if self.in_flight else ():
            if chunk.draws and chunk.sequence.finish_reason is None:
                self.append(chunk.sequence)
        self.machine.check_invariants()

    def count_waits(self, taking_part: set[str]) -> None:
        running = {sequence.request_id for sequence in self.machine.running}
        self.waits = Counter({name: self.waits[name] + 1 for name in running - taking_part})
        assert max(self.waits.values(), default=0) <= LONGEST_WAIT

    def append(self, sequence: Sequence) -> None:
        self.machine.append(sequence, 2)
        is_known = sequence.constraint is not None and not sequence.num_unread
        while is_known and sequence.finish_reason is None and self.chance.random() < 0.3:
            self.machine.set_apart([sequence])
            sequence.append_forced(2)
            sequence.update_finish_reason()
        if sequence.finish_reason is not None:
            self.machine.remove(sequence)
            self.live.remove(sequence)


@pytest.mark.parametrize(("depth", "many"), [(1, 64), (2, 64), (3, 64), (2, 3), (3, 3)])
@pytest.mark.parametrize("seed", range(4))
def test_all_that_run_go_on_and_all_end(seed: int, depth: int, many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.engine.scheduler.MANY", many)
    traffic = Traffic(seed, depth)
    for number in range(NUM_ARRIVALS):
        traffic.arrive(number)
        for _ in range(traffic.chance.randint(0, 5)):
            traffic.step()
    for _ in range(NUM_ARRIVALS * 80):
        traffic.step()
        if not traffic.live and not traffic.in_flight:
            break
    assert not traffic.live
