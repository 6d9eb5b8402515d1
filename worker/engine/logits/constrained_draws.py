"""Tokens that were drawn for sequences with a constraint: it may put another one in the place of each."""

from __future__ import annotations

from worker.engine.logits.logprob_records import certain_record
from worker.engine.logits.token_masks import constraint_error
from worker.engine.runner import Draw, Result
from worker.engine.sequence import Sequence
from worker.engine.token_constraint import ConstraintBatch, Drawn, take_alone


def take_draws(results: list[tuple[Sequence, Result]]) -> None:
    """Let the sequences' constraints take what was drawn, which becomes what is appended, or an error."""
    batches: dict[ConstraintBatch | None, list[int]] = {}
    for number, (sequence, result) in enumerate(results):
        if sequence.constraint is not None and isinstance(result, Draw):
            batches.setdefault(sequence.constraint.batch, []).append(number)
    for batch, numbers in batches.items():
        drawn = [_drawn(*results[number]) for number in numbers]
        taken = [take_alone(each) for each in drawn] if batch is None else batch.take(drawn)
        for number, token_id in zip(numbers, taken, strict=True):
            sequence, draw = results[number]
            if isinstance(token_id, Exception):
                results[number] = sequence, constraint_error(token_id)
            elif isinstance(draw, Draw) and token_id != draw.token_id:
                results[number] = sequence, _replaced(sequence, token_id)


def _drawn(sequence: Sequence, draw: Result) -> Drawn:
    assert sequence.constraint is not None and isinstance(draw, Draw)
    return Drawn(sequence.constraint, draw.token_id, sequence.num_left)


def _replaced(sequence: Sequence, token_id: int) -> Draw:
    """Another token than was drawn. Nothing but that could have been appended: so its probability is 1."""
    sequence.revision += 1
    num_top = sequence.sampling.logprobs
    return Draw(token_id, None if num_top is None else certain_record(token_id, num_top))
