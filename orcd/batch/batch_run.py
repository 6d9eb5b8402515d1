"""A prompt file's way through the queue: a window of jobs is kept in flight, each result is written as its job ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import TypeVar

from orcd.batch.batch_file import BatchFile
from orcd.batch.line import Line
from orcd.batch.place import Place
from orcd.batch.progress import Progress
from orcd.client import Client
from orcd.errors import OrcdError, QueueFull, RedisUnavailable
from orcd.result import Result, exception
from orcd.status import Status
from orcd.store import schema
from orcd.store.backoff import Backoff

MAX_IN_FLIGHT = 1024
MAX_BYTES_IN_FLIGHT = 64 * 1024 * 1024
"""Of the input's text; a line that is longer goes alone."""
LEAST_PAUSE_S = 0.05
GIVE_UP_AFTER_S = 60.0
"""How long a Redis that went away is waited for."""
RETRY_EVERY_S = 1.0

Answer = TypeVar("Answer")


class BatchRun:
    """Runs the lines of ``file`` that have no result yet. Stopping it at any point loses nothing.

    Lines for which the queue is full are submitted later. With ``fail_fast`` a line fails if no worker serves its
    model.
    """

    def __init__(self, client: Client, file: BatchFile, progress: Progress, *, fail_fast: bool = False) -> None:
        self._client = client
        self._file = file
        self._progress = progress
        self._fail_fast = fail_fast
        self._refused: list[Line] = []
        self._submit_at = 0.0
        self._in_flight: dict[str, Line] = {}
        self._tokens_out = 0
        self._unseen: set[str] = set()

    @property
    def num_in_flight(self) -> int:
        """Jobs that were submitted, as far as is known, and whose end was not seen."""
        return len(self._in_flight)

    def run(self) -> None:
        """Raises `RedisUnavailable` when Redis stays away, `InvalidRequest` when inputs and OUTPUT do not fit."""
        pending = self._file.pending()
        while True:
            if time.monotonic() >= self._submit_at:
                self._submit(list(self._window(pending)))
            if not self._in_flight and not self._refused:
                self._report(0)
                return
            start = time.monotonic()
            self._collect()
            time.sleep(max(LEAST_PAUSE_S, 4 * (time.monotonic() - start)))  # most of Redis's time is the workers'

    def cancel(self) -> None:
        """Cancel what is in flight, as far as Redis can be reached."""
        with suppress(RedisUnavailable):
            for job_id in self._in_flight:
                with suppress(OrcdError):
                    self._client.cancel(job_id)

    def _window(self, pending: Iterator[Line]) -> Iterator[Line]:
        """The next lines, as many as may be in flight besides those that are; first those that were refused."""
        refused, self._refused = self._refused, []
        num_lines, num_bytes = len(self._in_flight), sum(line.num_bytes for line in self._in_flight.values())
        lines = chain(refused, pending)
        while num_lines < MAX_IN_FLIGHT and num_bytes < MAX_BYTES_IN_FLIGHT:
            if (line := next(lines, None)) is None:
                return
            num_lines += 1
            num_bytes += line.num_bytes
            yield line

    def _submit(self, lines: list[Line]) -> None:
        def submit(lines: Sequence[Line]) -> list[bool]:
            job_ids = [line.job_id for line in lines]
            try:
                self._client.submit_many([line.request for line in lines], job_ids, fail_fast=self._fail_fast)
            except QueueFull as full:
                self._submit_at = time.monotonic() + full.retry_after_s
                return [job_id in full.stored for job_id in job_ids]
            return [True] * len(lines)

        self._file.submit(lines)
        self._in_flight |= {line.job_id: line for line in lines}  # who does not wait for the answer cancels them
        for line, is_stored in self._ask(lines, submit):
            if not is_stored:
                del self._in_flight[line.job_id]
                self._refused.append(line)
                continue
            if self._file.was_submitted(line):
                self._unseen.add(line.job_id)

    def _collect(self) -> None:
        def statuses(lines: Sequence[Line]) -> list[Status]:
            return self._client.statuses([line.job_id for line in lines])

        def results(lines: Sequence[Line]) -> list[Result]:
            return [self._client.result(line.job_id) for line in lines]

        tokens_in_flight = 0
        is_held_back = False
        for line, status in self._ask(self._lines_in_flight(), statuses):
            if line.job_id in self._unseen:  # what was generated before this run is not of its rate
                self._unseen.remove(line.job_id)
                self._tokens_out -= status.tokens_out
            is_held_back = is_held_back or self._waits_for_another(line)
            if status.state not in schema.TERMINAL_STATES or is_held_back:
                tokens_in_flight += status.tokens_out
                is_held_back = self._file.in_input_order
                continue
            for _, result in self._ask([line], results):
                self._tokens_out += result.tokens_out
                if result.error is None:
                    self._file.succeed(line, result)
                    self._in_flight.pop(line.job_id, None)
                else:
                    self._fail(line, exception(result.error))
        self._report(tokens_in_flight)

    def _lines_in_flight(self) -> list[Line]:
        lines = list(self._in_flight.values())
        return sorted(lines, key=_place) if self._file.in_input_order else lines

    def _waits_for_another(self, line: Line) -> bool:
        """Whether results go in the order of the lines and one before this line is still to be submitted."""
        return self._file.in_input_order and bool(self._refused) and _place(self._refused[0]) < _place(line)

    def _ask(self, lines: Sequence[Line], call: Callable[[Sequence[Line]], list[Answer]]) -> list[tuple[Line, Answer]]:
        """What ``call`` answers for each of the lines, once Redis is there.

        An error that one job is to blame for is that line's, and the line is left out.
        """
        try:
            return list(zip(lines, _patiently(partial(call, lines)) if lines else (), strict=True))
        except RedisUnavailable:
            raise
        except OrcdError as error:
            if len(lines) > 1:
                return [answer for line in lines for answer in self._ask([line], call)]
            self._fail(lines[0], error)
            return []

    def _fail(self, line: Line, error: OrcdError) -> None:
        self._file.fail(line.name, error)
        self._in_flight.pop(line.job_id, None)

    def _report(self, tokens_in_flight: int) -> None:
        self._progress.update(self._file.num_done, self._file.num_failed, self._tokens_out + tokens_in_flight)


def _place(line: Line) -> Place:
    return line.name.place


def _patiently(call: Callable[[], Answer]) -> Answer:
    """What ``call`` returns, once Redis is there. Raises `RedisUnavailable` after `GIVE_UP_AFTER_S` without it."""
    backoff = Backoff(RETRY_EVERY_S, RETRY_EVERY_S, GIVE_UP_AFTER_S, since=time.monotonic())
    while True:
        try:
            return call()
        except RedisUnavailable as error:
            time.sleep(backoff.failed(error))
