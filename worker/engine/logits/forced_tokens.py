"""Tokens about which a constraint leaves no choice: they are appended without a draw."""

from __future__ import annotations

from orcd.errors import OrcdError
from worker.engine.logits.token_masks import constraint_error
from worker.engine.scheduler import Scheduler
from worker.engine.sequence import Sequence

MOST_AT_ONCE = 32
"""Tokens appended behind one that was drawn. If more must follow, the next one is drawn, and more are appended then."""


def append_forced(sequence: Sequence, scheduler: Scheduler | None = None) -> tuple[list[int], OrcdError | None]:
    """Append what must follow the last token of a sequence, which is computed in its next step together.

    Nothing is where a chunk of several tokens would hold up too many others (`Scheduler.has_many`), nor where a step
    was launched already that draws what follows: then that is drawn.

    Returns the ids, and what went wrong behind them, if anything did. They are those that draws would have given: the
    mask of each would have allowed no other one.
    """
    token_ids: list[int] = []
    constraint = sequence.constraint
    if constraint is None or not sequence.takes_forced or sequence.num_unread:
        return token_ids, None
    if scheduler is not None:
        if scheduler.has_many:
            return token_ids, None
        scheduler.set_apart([sequence])
    try:
        while sequence.finish_reason is None and len(token_ids) < MOST_AT_ONCE:
            token_id = constraint.forced_id(sequence.num_left)
            if token_id is None or token_id in sequence.banned_ids:
                break
            token_id = constraint.take(token_id, sequence.num_left)
            sequence.append_forced(token_id)
            token_ids.append(token_id)
    except Exception as error:
        return token_ids, constraint_error(error)
    return token_ids, None
