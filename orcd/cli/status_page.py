"""Where a job stands, in words."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from orcd.cli.terminal import duration
from orcd.status import Status, WaitEstimate


def status_page(status: Status, estimate: WaitEstimate | None) -> Iterator[tuple[str, str]]:
    """Names and what is said of each; ``estimate`` is that of a job that waits."""
    yield "job", status.job_id
    yield "state", f"{status.state}, to be cancelled" if status.cancelling else status.state
    yield "model", status.model or status.asked_model or "any"
    yield "priority", f"{status.priority} (0 is the most urgent of 0 to 9)"
    yield "submitted", _moment(status.created_ms, status.as_of_ms)
    if status.state == "queued":
        yield from _waiting(status, estimate)
    if status.started_ms is not None:
        yield (
            "started",
            f"{_moment(status.started_ms, status.as_of_ms)}, after {_between(status.created_ms, status.started_ms)}",
        )
        yield "worker", status.worker or "none at the moment"
        yield "attempts", str(status.attempt)
        yield "losses", f"{status.losses} workers died with it since its last token" if status.losses else "0"
        yield from _progress(status)
    if status.finished_ms is not None:
        begun = status.created_ms if status.started_ms is None else status.started_ms
        yield "finished", f"{_moment(status.finished_ms, status.as_of_ms)}, after {_between(begun, status.finished_ms)}"
    if status.end is not None:
        yield "outcome", _reason(status.end.finish_reason)
    if status.error is not None:
        yield "error", f"{status.error.code}: {status.error.message}"
        yield "again", "it may succeed if it is submitted again" if status.error.retriable else "it would fail again"


def wait_words(estimate: WaitEstimate) -> str:
    """When a job will start, as far as that can be said."""
    if not estimate.served:
        return "once a worker takes such jobs"
    if estimate.load_percent is not None:
        return f"once the model is loaded ({estimate.load_percent} %)"
    if estimate.starts_in_ms is None:
        return "unknown: no worker has ended a job yet"
    rate = f"at {estimate.jobs_per_s:.2g} jobs a second"
    return f"in about {duration(estimate.starts_in_ms)}, {rate}" if estimate.ahead else "as soon as a slot is free"


def _waiting(status: Status, estimate: WaitEstimate | None) -> Iterator[tuple[str, str]]:
    is_unserved = estimate is not None and not estimate.served and status.served  # the last worker left a moment ago
    yield "waits", "no worker takes such jobs now" if is_unserved else status.reason or "for a worker"
    if estimate is not None:
        yield "ahead", f"{estimate.ahead} jobs"
        yield "starts", wait_words(estimate)


def _progress(status: Status) -> Iterator[tuple[str, str]]:
    if status.first_token_ms is not None and status.started_ms is not None:
        yield "first_token", f"{_between(status.started_ms, status.first_token_ms)} after the start"
    prompt = f"{status.end.tokens_in} in, " if status.end is not None else ""
    rate = "" if status.tokens_per_s is None else f", {status.tokens_per_s:g} a second"
    yield "tokens", f"{prompt}{status.tokens_out} out{rate}"


def _reason(finish_reason: str) -> str:
    known = {"stop": "the answer is complete", "length": "the answer is as long as it may be"}
    return f"{finish_reason}: {known[finish_reason]}" if finish_reason in known else finish_reason


def _moment(at_ms: int, now_ms: int) -> str:
    return (
        f"{datetime.fromtimestamp(at_ms // 1000, UTC):%Y-%m-%d %H:%M:%S} UTC ({duration(max(0, now_ms - at_ms))} ago)"
    )


def _between(start_ms: int, end_ms: int) -> str:
    passed_ms = max(0, end_ms - start_ms)
    return (
        f"{passed_ms} ms"
        if passed_ms < 1000
        else f"{passed_ms / 1000:.1f} s"
        if passed_ms < 60_000
        else duration(passed_ms)
    )
