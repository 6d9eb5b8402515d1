"""Tokens that were drawn, and that constraints take later: what follows them is not known in a moment.

Their sequences are in no step meanwhile, so that no other one waits for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from worker.engine.cohort import Draw
from worker.engine.logits.constrained_draws import TakenDraws, take_draws, taken_result
from worker.engine.runner import Result, Results
from worker.engine.sequence import Chunk, Sequence

DRAW_SHARE, READ_SHARE = 0.7, 0.9
"""Of the time that the device takes for a step: by then the next one is to be drawn from, and the one after it read."""


class LateDraws:
    """These tokens, those first that were drawn first."""

    def __init__(self) -> None:
        self._draws: dict[Sequence, int | Draw] = {}

    def __bool__(self) -> bool:
        return bool(self._draws)

    @property
    def sequences(self) -> list[Sequence]:
        """Whose they are."""
        return list(self._draws)

    def take_draws(self, chunks: list[Chunk], results: Results, has_time: Callable[[float], bool] | None) -> TakenDraws:
        """As `worker.engine.logits.constrained_draws.take_draws`; what is late comes to these.

        ``has_time`` is `worker.engine.runner.Runner.has_time`; without it nothing may be late.
        """
        taken = take_draws(chunks, results, None if has_time is None else lambda: has_time(DRAW_SHARE))
        for sequence, drawn in taken.late:
            self._draws[sequence] = drawn
            sequence.is_late = True
            sequence.revision += 1  # it comes back with a token that the host knows
        return taken

    def take(self, has_time: Callable[[float], bool] | None = None) -> Iterator[tuple[Sequence, Result]]:
        """Have constraints take one of them at least, and more while there is time; what is to be appended to whom.

        Without ``has_time`` all of them. Else those that need threads for it are not waited for.
        """
        for sequence, drawn in tuple(self._draws.items()):
            result = None
            if sequence.finish_reason is None:
                result = taken_result(sequence, drawn, waits=has_time is None)
                if result is None:
                    continue
            del self._draws[sequence]
            sequence.is_late = False
            if result is not None:
                yield sequence, result
            if has_time is not None and not has_time(READ_SHARE):
                return
