"""A prompt file's way through the queue: a window of jobs is kept in flight, each result is written as its job ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import msgspec

from orcd.batch.batch_file import BatchFile, Line
from orcd.batch.progress import Progress
from orcd.client import Client
from orcd.errors import OrcdError, QueueFull, RedisUnavailable
from orcd.result import Choice, Result, exception
from orcd.status import Status
from orcd.store import schema
from orcd.store.backoff import Backoff

MAX_IN_FLIGHT = 1024
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

    def run(self) -> None:
        """Raises `RedisUnavailable` when Redis stays away, `InvalidRequest` when INPUT and OUTPUT do not fit."""
        pending = self._file.pending()
        while True:
            if time.monotonic() >= self._submit_at:
                lines, self._refused = self._refused, []
                self._submit(lines + list(islice(pending, MAX_IN_FLIGHT - len(self._in_flight) - len(lines))))
            if not self._in_flight and not self._refused:
                self._report(0)
                return
            start = time.monotonic()
            self._collect()
            time.sleep(max(LEAST_PAUSE_S, 4 * (time.monotonic() - start)))  # most of Redis's time is the workers'

    def _submit(self, lines: list[Line]) -> None:
        def submit(lines: Sequence[Line]) -> list[bool]:
            job_ids = [line.job_id for line in lines]
            try:
                self._client.submit_many([line.fields for line in lines], job_ids, fail_fast=self._fail_fast)
            except QueueFull as full:
                self._submit_at = time.monotonic() + full.retry_after_s
                return [job_id in full.stored for job_id in job_ids]
            return [True] * len(lines)

        for line, is_stored in self._ask(lines, submit):
            if is_stored:
                self._in_flight[line.job_id] = line
            else:
                self._refused.append(line)

    def _collect(self) -> None:
        def statuses(lines: Sequence[Line]) -> list[Status]:
            return self._client.statuses([line.job_id for line in lines])

        def results(lines: Sequence[Line]) -> list[Result]:
            return [self._client.result(line.job_id) for line in lines]

        tokens_in_flight = 0
        for line, status in self._ask(list(self._in_flight.values()), statuses):
            if status.state not in schema.TERMINAL_STATES:
                tokens_in_flight += status.tokens_out
                continue
            for _, result in self._ask([line], results):
                self._tokens_out += result.tokens_out
                if result.error is None:
                    self._file.succeed(line, record(result))
                    del self._in_flight[line.job_id]
                else:
                    self._fail(line, exception(result.error))
        self._report(tokens_in_flight)

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
        self._file.fail(line.number, error, line)
        self._in_flight.pop(line.job_id, None)

    def _report(self, tokens_in_flight: int) -> None:
        self._progress.update(self._file.num_done, self._tokens_out + tokens_in_flight)


def record(result: Result) -> dict[str, Any]:
    """A successful result as it is written: the first choice's text, and all choices where one text is not enough."""
    first = result.choices[0] if result.choices else Choice()
    choices = [msgspec.to_builtins(choice, str_keys=True) for choice in result.choices]
    whole = len(choices) > 1 or first.logprobs is not None or first.reasoning is not None
    return {
        "text": first.text,
        **({"choices": choices} if whole else {}),
        "finish_reason": first.finish_reason,
        "tokens_in": result.tokens_in,
        "tokens_out": result.tokens_out,
        "queue_ms": result.queue_ms,
        "ttft_ms": result.ttft_ms,
        "decode_ms": result.decode_ms,
    }


def _patiently(call: Callable[[], Answer]) -> Answer:
    """What ``call`` returns, once Redis is there. Raises `RedisUnavailable` after `GIVE_UP_AFTER_S` without it."""
    backoff = Backoff(RETRY_EVERY_S, RETRY_EVERY_S, GIVE_UP_AFTER_S, since=time.monotonic())
    while True:
        try:
            return call()
        except RedisUnavailable as error:
            time.sleep(backoff.failed(error))
