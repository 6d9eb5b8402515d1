"""What a worker gets of a job when it takes it over."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from orcd import request as requests
from orcd.errors import InvalidRequest
from orcd.events import Packing
from orcd.request import Request
from orcd.store.enqueue import RecordedMessage
from orcd.store.submission import trace_parent
from orcd.store.token_log import LoggedEvent, read_log, script_entries

ClaimStatus = Literal["claimed", "unknown", "busy", "finished", "unreadable"]
"""What a claim finds: ``unreadable`` is a record of a newer version, which is left alone."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What every write of a job's owner names: the epoch is higher with each claim, the token a random word.

    A Redis that came back from an older snapshot hands out an epoch again, but no token.
    """

    epoch: int
    token: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A job as its new owner takes it over. Times are Unix milliseconds of the Redis clock.

    ``request`` is an error where the record holds none that this version can read. ``fingerprint`` is the last owner's,
    "" if there was none, and ``losses`` counts those that died with the job since its last token. ``recorded`` are the
    task ids of the job's recorded messages, and ``time_limit_s`` is the shortest limit among these. ``trace`` is the
    ``traceparent`` that its sender gave, "" for none. ``packing`` is what its sender reads in its log.
    """

    job_id: str
    request: Request | InvalidRequest
    lease: Lease
    attempt: int
    losses: int
    created_ms: int
    started_ms: int
    first_token_ms: int | None
    claimed_ms: int
    deadline_ms: int
    cancelled: bool
    fingerprint: str
    recorded: frozenset[str]
    time_limit_s: float | None
    log: tuple[LoggedEvent, ...]
    trace: str = ""
    packing: Packing = Packing.NOTHING

    @classmethod
    def read(
        cls,
        job_id: str,
        now_ms: int,
        fingerprint: str,
        record: Mapping[bytes, bytes],
        entries: Sequence[Any],
        messages: Sequence[RecordedMessage],
    ) -> Claim:
        """From the claim script's answer. Raises ValueError, KeyError, TypeError or `LogDamaged` if it is damaged."""
        first_token = record.get(b"first_token_ms")
        return cls(
            job_id=job_id,
            request=_stored(record[b"request"]),
            lease=Lease(int(record[b"epoch"]), record[b"token"].decode()),
            attempt=int(record[b"attempt"]),
            losses=int(record.get(b"losses", 0)),
            created_ms=int(record[b"created_ms"]),
            started_ms=int(record[b"started_ms"]),
            first_token_ms=None if first_token is None else int(first_token),
            claimed_ms=now_ms,
            deadline_ms=int(record[b"deadline_ms"]),
            cancelled=b"cancel" in record,
            fingerprint=fingerprint,
            recorded=frozenset(message.task_id for message in messages),
            time_limit_s=min((limit for each in messages if (limit := each.time_limit_s)), default=None),
            log=read_log(job_id, script_entries(entries)),
            trace=trace_parent(record.get(b"trace", b"").decode()),
            packing=Packing(min(Packing.TOKENS, int(record.get(b"packed", 0)))),
        )


def _stored(json: bytes) -> Request | InvalidRequest:
    try:
        return requests.decode(json)
    except InvalidRequest as error:
        return error
