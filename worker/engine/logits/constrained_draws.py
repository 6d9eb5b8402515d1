"""Tokens that were drawn for sequences with a constraint: it may put another one in the place of each."""

from __future__ import annotations

from orcd.errors import OrcdError
from worker.engine.cohort import Draw
from worker.engine.logits.logprob_records import certain_record
from worker.engine.logits.token_masks import constraint_error
from worker.engine.runner import PromptReport, Result
from worker.engine.sequence import Sequence
from worker.engine.token_constraint import ConstraintBatch, Drawn, take_alone


def take_draws(results: list[tuple[Sequence, Result]]) -> list[Sequence]:
    """Let the sequences' constraints take what was drawn, which becomes what is appended, or an error.

    Returns the sequences that go on with another token, or not at all.
    """
    others: list[Sequence] = []
    batches: dict[ConstraintBatch | None, tuple[list[int], list[Drawn]]] = {}
    for number, (sequence, result) in enumerate(results):
        constraint = sequence.constraint
        if constraint is None:
            continue
        token_id = result if isinstance(result, int) else _drawn_id(result)
        if token_id is None:
            continue
        batch = constraint.batch
        asked = batches.get(batch)
        if asked is None:
            asked = batches[batch] = [], []
        asked[0].append(number)
        asked[1].append(Drawn(constraint, token_id, sequence.num_left))
    for batch, (numbers, drawn) in batches.items():
        taken = [take_alone(each) for each in drawn] if batch is None else batch.take(drawn)
        for number, (_, drawn_id, _), appended in zip(numbers, drawn, taken, strict=True):
            if appended != drawn_id:
                sequence, result = results[number]
                other = constraint_error(appended) if isinstance(appended, Exception) else _replaced(sequence, appended)
                results[number] = sequence, _with_rest(result, other)
                others.append(sequence)
    return others


def _drawn_id(result: Result) -> int | None:
    draw = result.rest if isinstance(result, PromptReport) else result
    if isinstance(draw, Draw):
        return draw.token_id
    return draw if isinstance(draw, int) else None


def _with_rest(result: Result, rest: Draw | OrcdError) -> Result:
    return PromptReport(result.logprobs, rest) if isinstance(result, PromptReport) else rest


def _replaced(sequence: Sequence, token_id: int) -> Draw:
    """Another token than was drawn. Nothing but that could have been appended: so its probability is 1."""
    sequence.revision += 1
    num_top = sequence.sampling.logprobs
    return Draw(token_id, None if num_top is None else certain_record(token_id, num_top))
