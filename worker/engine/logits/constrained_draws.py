"""Tokens that were drawn for sequences with a constraint: it may put another one in the place of each."""

from __future__ import annotations

from collections.abc import Callable, Collection
from collections.abc import Sequence as Series
from typing import NamedTuple

from orcd.errors import OrcdError
from worker.engine.cohort import Draw, DrawnTokens
from worker.engine.logits.logprob_records import certain_record
from worker.engine.logits.token_masks import by_batch, constraint_error
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
    late: Collection[tuple[Sequence, int | Draw]] = ()
    """What was drawn, and constraints have not taken: nothing of it is appended now."""


def take_draws(chunks: list[Chunk], results: Results, may_wait: Callable[[], bool] | None = None) -> TakenDraws:
    """Let the sequences' constraints take what was drawn, which becomes what is appended, or an error.

    With ``may_wait`` they take all that takes a moment, and the others one by one as long as that says so.
    """
    ids = results.ids if isinstance(results, DrawnTokens) else [_drawn_id(each) for each in results]
    drawn: list[Drawn] = []
    numbers: list[int] = []
    for number, ((sequence, _, _), token_id) in enumerate(zip(chunks, ids, strict=True)):
        constraint = sequence.constraint
        if constraint is not None and token_id is not None and sequence.finish_reason is None:
            numbers.append(number)
            drawn.append((constraint, token_id, sequence.most_tokens - len(sequence.token_ids)))
    changed: dict[int, int | Exception | None] = {}
    for batch, indices in by_batch(drawn).items():
        of_batch = drawn if len(indices) == len(drawn) else [drawn[index] for index in indices]
        taken: Series[int | Exception | None]
        if batch is None:
            taken = [take_alone(each) for each in of_batch]
        elif may_wait is None:
            taken = batch.take(of_batch)
        else:
            taken = _taken_in_time(batch, of_batch, may_wait)
        pairs = zip(indices, of_batch, taken, strict=True)
        changed.update({numbers[index]: appended for index, each, appended in pairs if appended != each[1]})
    ended = [chunks[numbers[index]].sequence for index, each in enumerate(drawn) if each[0].is_complete]
    if not changed:
        return TakenDraws(results, (), ended)
    others = [chunks[each].sequence for each in changed]
    appended, late = _with_changed(chunks, results, changed)
    return TakenDraws(appended, others, ended, late)


def taken_result(sequence: Sequence, drawn: int | Draw, *, waits: bool) -> int | Draw | OrcdError | None:
    """What is to be appended where ``drawn`` is late, or an error; None while that is open, unless this ``waits``."""
    constraint, token_id = sequence.constraint, drawn if isinstance(drawn, int) else drawn.token_id
    assert constraint is not None and constraint.batch is not None, "a token of which all is known"
    taken = constraint.batch.take_unknown((constraint, token_id, sequence.num_left), waits=waits)
    if isinstance(taken, Exception):
        return constraint_error(taken)
    return drawn if taken == token_id else None if taken is None else _replaced(sequence, taken)


def _taken_in_time(
    batch: ConstraintBatch, drawn: list[Drawn], may_wait: Callable[[], bool]
) -> list[int | Exception | None]:
    taken = batch.take_known(drawn)
    for number in [number for number, each in enumerate(taken) if each is None]:
        if not may_wait():
            break
        taken[number] = batch.take_unknown(drawn[number], waits=False)
    return taken


def _with_changed(
    chunks: list[Chunk], results: Results, changed: dict[int, int | Exception | None]
) -> tuple[Results, list[tuple[Sequence, int | Draw]]]:
    other = list(results.one_by_one(chunks) if isinstance(results, DrawnTokens) else results)
    late: list[tuple[Sequence, int | Draw]] = []
    for number, appended in changed.items():
        sequence, result = chunks[number].sequence, other[number]
        rest: Draw | OrcdError | None
        if appended is None:
            draw = result.rest if isinstance(result, PromptReport) else result
            assert isinstance(draw, int | Draw), "a token that nobody drew"
            late.append((sequence, draw))
            rest = None
        else:
            rest = constraint_error(appended) if isinstance(appended, Exception) else _replaced(sequence, appended)
        other[number] = PromptReport(result.logprobs, rest) if isinstance(result, PromptReport) else rest
    return other, late


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
