"""Tokens that were drawn for sequences with a constraint: it may put another one in the place of each."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from worker.engine.cohort import Draw, DrawnTokens
from worker.engine.logits.logprob_records import certain_record
from worker.engine.logits.token_masks import constraint_error
from worker.engine.runner import PromptReport, Result, Results
from worker.engine.sequence import Chunk, Sequence
from worker.engine.token_constraint import ConstraintBatch, Drawn, take_alone


class TakenDraws(NamedTuple):
    """What constraints made of the results of a step."""

    results: Results
    others: Collection[Sequence] = ()
    """Those that go on with another token than the one that was drawn, or not at all."""
    ended: Collection[Sequence] = ()
    """Those behind whose token nothing may follow."""


def take_draws(chunks: list[Chunk], results: Results) -> TakenDraws:
    """Let the sequences' constraints take what was drawn, which becomes what is appended, or an error."""
    ids = results.ids if isinstance(results, DrawnTokens) else [_drawn_id(result) for result in results]
    batches: dict[ConstraintBatch | None, tuple[list[int], list[Drawn]]] = {}
    for number, ((sequence, _, _), token_id) in enumerate(zip(chunks, ids, strict=True)):
        constraint = sequence.constraint
        if constraint is None or token_id is None or sequence.finish_reason is not None:
            continue
        asked = batches.get(batch := constraint.batch)
        if asked is None:
            asked = batches[batch] = [], []
        asked[0].append(number)
        asked[1].append((constraint, token_id, sequence.most_tokens - len(sequence.token_ids)))
    changed: dict[int, int | Exception] = {}
    ended: list[Sequence] = []
    for batch, (numbers, drawn) in batches.items():
        taken = [take_alone(each) for each in drawn] if batch is None else batch.take(drawn)
        drawn_ids = [token_id for _, token_id, _ in drawn]
        if taken != drawn_ids:
            pairs = zip(numbers, drawn_ids, taken, strict=True)
            changed.update({number: appended for number, token_id, appended in pairs if appended != token_id})
        ended += [chunks[number].sequence for number, each in zip(numbers, drawn, strict=True) if each[0].is_complete]
    if not changed:
        return TakenDraws(results, (), ended)
    return TakenDraws(_with_changed(chunks, results, changed), [chunks[each].sequence for each in changed], ended)


def _with_changed(chunks: list[Chunk], results: Results, changed: dict[int, int | Exception]) -> Results:
    other = list(results.one_by_one(chunks) if isinstance(results, DrawnTokens) else results)
    for number, appended in changed.items():
        sequence, result = chunks[number].sequence, other[number]
        rest = constraint_error(appended) if isinstance(appended, Exception) else _replaced(sequence, appended)
        other[number] = PromptReport(result.logprobs, rest) if isinstance(result, PromptReport) else rest
    return other


def _drawn_id(result: Result) -> int | None:
    draw = result.rest if isinstance(result, PromptReport) else result
    if isinstance(draw, Draw):
        return draw.token_id
    return draw if isinstance(draw, int) else None


def _replaced(sequence: Sequence, token_id: int) -> Draw:
    """Another token than was drawn. Nothing but that could have been appended: so its probability is 1."""
    sequence.revision += 1
    num_top = sequence.sampling.logprobs
    return Draw(token_id, None if num_top is None else certain_record(token_id, num_top))
