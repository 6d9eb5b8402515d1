"""Claims that no Redis has handed out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orcd.request import Request
from orcd.store.claim import Claim, Lease

CLAIM = Claim(
    job_id="j",
    request=Request(prompt="old pond"),
    lease=Lease(1, "token-1"),
    attempt=1,
    losses=0,
    created_ms=1000,
    started_ms=1200,
    first_token_ms=None,
    claimed_ms=1200,
    deadline_ms=0,
    cancelled=False,
    fingerprint="",
    recorded=frozenset(),
    time_limit_s=None,
    log=(),
)


def claim(request: Request, attempt: int = 1, **fields: Any) -> Claim:
    """The claim of a job that nobody has started yet, unless ``fields`` say otherwise; earlier owners have died."""
    lease = Lease(attempt, f"token-{attempt}")
    return replace(CLAIM, **{"request": request, "attempt": attempt, "losses": attempt - 1, "lease": lease} | fields)
