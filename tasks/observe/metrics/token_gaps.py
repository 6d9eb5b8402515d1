"""Times between the tokens of answers."""

from __future__ import annotations

from collections.abc import Iterable

from tasks.observe.metrics.bucket_counts import BucketCounts
from worker.contract import TokenOutput

SECONDS = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40, 80)
"""vLLM's bounds for it. An engine that is faster than the first sends the tokens of several steps together."""


class TokenGaps:
    """Counts the time from each token to the next of the same answer, in seconds, as they come from the engine.

    Tokens that come together share the time since those before them equally; between the first ones that come of an
    answer no time is known.
    """

    def __init__(self) -> None:
        self.counts = BucketCounts(SECONDS)
        self._last: dict[tuple[str, int], float] = {}  # when the last token of each answer came

    def add(self, outputs: Iterable[TokenOutput], now: float) -> None:
        """Outputs of the engine that came ``now``, by the monotonic clock."""
        last = self._last
        for output in outputs:
            answer = output.request_id, output.choice
            if num_tokens := len(output.ids):
                before = last.get(answer)
                if before is not None:
                    self.counts.add((now - before) / num_tokens, num_tokens)
                last[answer] = now
            if output.finish_reason is not None:
                last.pop(answer, None)

    def clear(self) -> None:
        """The engine is gone: the next tokens come from another one."""
        self._last.clear()
