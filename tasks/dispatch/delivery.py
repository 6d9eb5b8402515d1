"""A job as a Celery message delivers it, and what the message is answered with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orcd.errors import OrcdError
from orcd.request import Request
from orcd.result import Result
from orcd.store.enqueue import RecordedMessage
from orcd.store.job_store import Arrival


@dataclass(frozen=True, slots=True)
class Repeated:
    """The result of a job that had ended before this delivery of it."""

    result: Result


@dataclass(frozen=True, slots=True)
class Fenced:
    """The job's lease was lost while it ran. Another worker may have the job, or Redis may have forgotten it."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Redis has no record of the job, and the delivery brought no request to make one of."""


Outcome = Result | Repeated | OrcdError | None
"""What became of a job here: its result, its error, or None where another worker has it."""

Answer = Outcome | Fenced | Unknown
"""What a delivery is done with; with the last two it may have to be claimed again."""

Done = Callable[[Answer], None]


@dataclass(frozen=True, slots=True)
class Delivery:
    """A job to be claimed.

    ``request`` is set when it came inside the message, and ``message`` when the message carries what a plain one would
    lose (a canvas, limits, an id of its own): both are written down by ``JobStore.arrive`` before anything else
    happens. ``time_limit_s`` is the message's own limit for the job, counted from its first start, ``trace`` its trace
    context.

    ``done`` is called once with the outcome. Where another worker or message has the job, the delivery is over, or, if
    it ``waits``, goes on when the job has ended or lost its worker.
    """

    job_id: str
    request: Request | None
    done: Done
    waits: bool = False
    message: RecordedMessage | None = None
    time_limit_s: float | None = None
    trace: str = ""

    @property
    def arrival(self) -> Arrival:
        """What is to be written down of it."""
        return Arrival(self.job_id, self.request, self.message, self.trace)
