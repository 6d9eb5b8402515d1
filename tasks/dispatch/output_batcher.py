"""When the engine's outputs become events: the more there is to do, the more of them each event takes together."""

from __future__ import annotations

import time
from collections.abc import Iterable

from worker.contract import TokenOutput, join_outputs

THROTTLE_SHARE = 10
"""After a batch the job runner pauses so many times as long as it worked, to leave the interpreter to Celery's event
loop."""
MAX_THROTTLE_S = 0.1
MAX_OUTPUTS = 16
"""Outputs of a batch that are not due, at most: what is due meanwhile waits for these, not for those of all streams."""
QUIET_INTERVAL_S = 0.1
"""The tokens of jobs that nobody listens to are written once in so long, as an event costs Redis more than a token."""


class OutputBatcher:
    """Collects outputs, all of one choice in one, and says when they are to be written.

    All are written in the next batches, but those of quiet requests only if the last such ones were `QUIET_INTERVAL_S`
    ago. Two kinds are due at once: the last of a choice and the first of a request, which somebody waits for. In the
    throttle interval before a batch only these are written. An error stays by itself, behind the tokens of all choices.
    Belongs to the job runner's thread.
    """

    def __init__(self) -> None:
        self._runs: dict[tuple[str, int, bool], list[TokenOutput]] = {}
        self._due: list[tuple[str, int]] = []
        self._awaiting_first: set[str] = set()
        self._quiet: set[str] = set()
        self._quiet_end = 0.0
        self._turn: list[tuple[str, int, bool]] = []  # whose outputs the next batches take, before those of others
        self.interval_end = 0.0

    @property
    def has_due(self) -> bool:
        """Whether outputs are due."""
        return bool(self._due)

    def expect_first(self, request_id: str) -> None:
        """The next output of this request is due."""
        self._awaiting_first.add(request_id)

    def forget(self, request_id: str) -> None:
        """Nothing more will come of it."""
        self._awaiting_first.discard(request_id)
        self._quiet.discard(request_id)

    def set_quiet(self, request_id: str, *, is_quiet: bool) -> None:
        """Say whether nothing waits for what comes of a request between its first output and its last.

        Who listens does, and the engine does if a stop string may end its work on the request.
        """
        if is_quiet:
            self._quiet.add(request_id)
        else:
            self._quiet.discard(request_id)

    def wait_s(self) -> float | None:
        """After how many seconds there is a batch to write if no more outputs come; None if there are none."""
        if not self._runs:
            return None
        if self._due or self._turn or any(request_id not in self._quiet for request_id, _, _ in self._runs):
            return 0.0
        return max(0.0, self._quiet_end - time.monotonic())

    def throttle(self, interval_s: float) -> None:
        """Begin a throttle interval."""
        self.interval_end = time.monotonic() + interval_s

    def add(self, outputs: Iterable[TokenOutput]) -> None:
        """Outputs that the engine has sent."""
        for output in outputs:
            request_id, finish_reason = output.request_id, output.finish_reason
            key = request_id, output.choice, finish_reason == "error"
            run = self._runs.get(key)
            if run is None:
                self._runs[key] = [output]
            else:
                run.append(output)
            if finish_reason == "error":  # it ends the whole job, behind what was drawn of the other choices
                self._due += [other[:2] for other in self._runs if other[0] == request_id]
            elif finish_reason is not None or request_id in self._awaiting_first:
                self._due.append(key[:2])
                self._awaiting_first.discard(request_id)

    def take_all(self) -> list[TokenOutput]:
        """All outputs; none is left."""
        runs, self._runs = self._runs, {}
        self._due.clear()
        self._turn.clear()
        return [join_outputs(run) for run in runs.values()]

    def take_batch(self) -> list[TokenOutput]:
        """The outputs of the next batch; those of quiet requests stay unless it is time for them or they are due."""
        due = self.take_due()
        if not self._turn:
            is_for_all = (now := time.monotonic()) >= self._quiet_end
            self._quiet_end = now + QUIET_INTERVAL_S if is_for_all else self._quiet_end
            self._turn = [key for key in self._runs if is_for_all or key[0] not in self._quiet]
        turn, self._turn = self._turn[:MAX_OUTPUTS], self._turn[MAX_OUTPUTS:]
        return due + self._take(key for key in turn if key in self._runs)

    def take_of(self, request_id: str) -> list[TokenOutput]:
        """All outputs of one request."""
        return self._take([key for key in self._runs if key[0] == request_id])

    def take_due(self) -> list[TokenOutput]:
        """All outputs of the choices of which one is due; those of others stay."""
        keys = dict.fromkeys((*choice, is_error) for is_error in (False, True) for choice in self._due)
        self._due.clear()
        return self._take(key for key in keys if key in self._runs)

    def _take(self, keys: Iterable[tuple[str, int, bool]]) -> list[TokenOutput]:
        return [join_outputs(self._runs.pop(key)) for key in keys]


def throttle_interval_s(worked_s: float) -> float:
    """The pause after a batch that took ``worked_s`` seconds of processor time."""
    return min(THROTTLE_SHARE * worked_s, MAX_THROTTLE_S)
