"""A job's token log as readers check it: nothing may be missing from it, and each of its entries can be read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import redis

from orcd.errors import LogDamaged
from orcd.events import Error, Event, Position, Token, decode_event, state_after
from orcd.status import damaged
from orcd.store import schema
from orcd.store.redis_connection import has_wrong_type

Entry = tuple[bytes, dict[bytes, bytes]]
"""A log entry as redis-py gives it: id and fields."""


class LoggedEvent(msgspec.Struct, frozen=True):
    """An event with its place in the token log."""

    position: Position
    event: Event


def read_entry(entry: Entry, before: Position | None) -> LoggedEvent:
    """An entry that follows the one at ``before`` (None: not known).

    Raises ValueError if it does not, or cannot be read.
    """
    try:
        entry_id, fields = entry
        logged = LoggedEvent(Position.parse(entry_id), decode_event(fields[b"e"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"an entry cannot be read ({type(error).__name__})") from None
    event = logged.event
    if before is not None and before.after(len(event.ids) if isinstance(event, Token) else 0) != logged.position:
        raise ValueError(f"entries between {before.text} and {logged.position.text} are missing")
    return logged


def read_log(job_id: str, entries: Iterable[Entry]) -> tuple[LoggedEvent, ...]:
    """The events of a whole log. Raises `LogDamaged` if one is missing or cannot be read."""
    log: list[LoggedEvent] = []
    counts: defaultdict[int, int] = defaultdict(int)
    try:
        before = Position()
        for entry in entries:
            logged = read_entry(entry, before)
            if isinstance(logged.event, Token):
                if logged.event.i != counts[logged.event.choice] + 1:
                    raise ValueError(f"the tokens at {logged.position.text} are not the next ones of their choice")
                counts[logged.event.choice] += len(logged.event.ids)
            log.append(logged)
            before = logged.position
    except ValueError:
        raise damaged(job_id) from None
    return tuple(log)


def read_events(job_id: str, state: bytes | None, end: bytes | None, entries: Iterable[Entry] | None) -> list[Event]:
    """The events of a job by its record's ``state`` and ``end`` and its log, None where that cannot be used.

    Raises `LogDamaged` if the log cannot be used or does not end as the state says; but where the record has the error
    that the job ended with, that stands for what is missing.
    """
    error = terminal_error(end)
    try:
        if entries is None:
            raise damaged(job_id)
        events = [logged.event for logged in read_log(job_id, entries)]
    except LogDamaged:
        if error is None:
            raise
        return [error]
    if state is not None and state.decode() in schema.TERMINAL_STATES and not (events and state_after(events[-1])):
        if error is None:
            raise damaged(job_id)
        events.append(error)
    return events


def terminal_error(end: bytes | None) -> Error | None:
    """The error that a job ended with, from the field ``end`` of its record."""
    try:
        event = decode_event(end) if end else None
    except ValueError:
        return None
    return event if isinstance(event, Error) else None


def usable(answer: Any) -> Any:
    """A command's answer, None where the key is of another type. Raises it if it is another error."""
    if has_wrong_type(answer):
        return None
    if isinstance(answer, redis.RedisError):
        raise answer
    return answer


def script_entries(answer: Sequence[Any]) -> list[Entry]:
    """Entries as a script returns them, in the form that redis-py gives those of XRANGE."""
    return [(entry_id, dict(zip(fields[::2], fields[1::2], strict=True))) for entry_id, fields in answer]
