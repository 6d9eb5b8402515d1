"""A step that is not drawn from yet can be taken back, as a whole or for some sequences."""

from __future__ import annotations

import pytest

from tests.worker.engine.bracket_constraint import BracketConstraint
from worker.contract import Sampling
from worker.engine.cohort import StepInFlight
from worker.engine.logits.open_step import OpenStep, awaits_tokens
from worker.engine.sequence import Chunk, Sequence


def sequence(number: int, *, is_bound: bool = True) -> Sequence:
    constraint = BracketConstraint(40) if is_bound else None
    options = Sampling(max_tokens=40, prompt_logprobs=0 if number == 2 else None)
    made = Sequence(f"r{number}", 0, options, 0, [number, 1, 1], 3, 40, constraint=constraint)
    made.prompt_logprobs = bytearray() if number == 2 else None
    return made


def launched() -> tuple[OpenStep, StepInFlight, list[Chunk]]:
    """A step behind another one that drew for all but the last."""
    sequences = [sequence(number) for number in range(3)]
    for each in sequences[:2]:
        each.launch(3, True)
    chunks = [Chunk(sequences[0], 1, True), Chunk(sequences[1], 1, True), Chunk(sequences[2], 2, False)]
    for each, num_tokens, draws in chunks:
        each.launch(num_tokens, draws)
    in_flight = StepInFlight(0, [], chunks.copy())
    return OpenStep(in_flight), in_flight, chunks


@pytest.mark.parametrize(
    ("is_bound", "is_drawn", "awaits"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_it_waits_for_tokens_of_those_with_a_constraint(is_bound: bool, is_drawn: bool, awaits: bool) -> None:
    one = sequence(0, is_bound=is_bound)
    if is_drawn:
        one.launch(3, True)
    assert awaits_tokens([Chunk(sequence(1), 3, True), Chunk(one, 1, True)]) == awaits


def test_a_sequence_that_is_left_out_goes_on_as_if_it_had_not_been_in_the_step() -> None:
    step, in_flight, chunks = launched()
    one = chunks[1].sequence
    assert step.leave_out([one, sequence(7)]) == [one]
    assert step.step.chunks == [chunks[0], Chunk(one, 1, draws=False), chunks[2]]
    assert in_flight.chunks == chunks
    assert step.void == {one}
    assert (one.num_computed, one.num_unread, one.num_tokens) == (3, 1, 4)
    one.append(2)
    one.check_invariants()
    assert one.num_pending == 1


def test_all_of_it_is_taken_back_but_what_has_ended_or_was_left_out() -> None:
    step, _, chunks = launched()
    step.leave_out([chunks[1].sequence])
    assert step.take_back() == [chunks[0], chunks[2]]
    first, last = chunks[0].sequence, chunks[2].sequence
    assert (first.num_computed, first.num_unread, first.num_tokens) == (3, 1, 4)
    assert (last.num_computed, last.num_reported, last.num_tokens) == (0, 0, 3)
    step, _, chunks = launched()
    chunks[0].sequence.finish_reason = "abort"
    assert step.take_back() == chunks[1:]
