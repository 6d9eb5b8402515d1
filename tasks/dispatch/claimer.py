"""How delivered jobs become active: claimed in Redis, their text turned into token ids."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue

import redis

from orcd.errors import Cancelled, Expired, InvalidRequest, OrcdError, Poisoned
from orcd.result import fold
from orcd.store.job_store import Claim, ClaimStatus, JobStore
from tasks.dispatch.active_job import ActiveJob
from tasks.dispatch.delivery import Delivery, Repeated
from tasks.dispatch.prompt_encoder import Prompt, PromptEncoder
from worker import contract

RETRY_S = 0.5
MAX_CLAIMS = 16
"""Jobs claimed in one call. Nobody renews their leases while the prompts before theirs are encoded."""


class Claimer:
    """A thread that claims the jobs that were delivered and passes each that is ours to ``begin``, in order."""

    def __init__(
        self,
        store: JobStore,
        encoder: PromptEncoder,
        model: str,
        max_attempts: int,
        begin: Callable[[ActiveJob], None],
    ) -> None:
        self._store = store
        self._encoder = encoder
        self._model = model
        self._max_attempts = max_attempts
        self._begin = begin
        self._limits: contract.Ready | None = None
        self._deliveries: SimpleQueue[Delivery | None] = SimpleQueue()
        self._waiting: list[Delivery] = []
        self._retry_waiting_at = 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="claimer", daemon=True)

    def start(self, limits: contract.Ready) -> None:
        """Begin to claim jobs for an engine with these limits."""
        self._limits = limits
        self._thread.start()

    def put(self, delivery: Delivery) -> None:
        """Hand in a delivery; its ``done`` is called once, unless the claimer is stopped before its turn."""
        self._deliveries.put(delivery)

    def stop(self) -> None:
        """Finish the deliveries that were begun and leave the others unclaimed: their messages are delivered again."""
        self._stopping.set()
        self._deliveries.put(None)
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopping.is_set():
            deliveries = self._next()
            while deliveries and not self._stopping.is_set() and not self._take(deliveries):
                self._stopping.wait(RETRY_S)

    def _next(self) -> list[Delivery]:
        """The next deliveries, waited for, and now and then those that wait for somebody else's job."""
        deliveries: list[Delivery | None] = []
        with suppress(Empty):
            deliveries.append(self._deliveries.get(timeout=RETRY_S if self._waiting else None))
            while len(deliveries) < MAX_CLAIMS:
                deliveries.append(self._deliveries.get_nowait())
        if time.monotonic() >= self._retry_waiting_at:
            deliveries += self._waiting
            self._waiting.clear()
            self._retry_waiting_at = time.monotonic() + RETRY_S
        return [delivery for delivery in deliveries if delivery is not None]

    def _take(self, deliveries: Sequence[Delivery]) -> bool:
        """Whether the deliveries are dealt with; False while Redis cannot be reached."""
        try:
            written = [delivery for delivery in deliveries if self._write_down(delivery)]
            claims = self._store.claim([delivery.job_id for delivery in written])
        except redis.RedisError:
            return False
        for delivery, claim in zip(written, claims, strict=True):
            self._answer(delivery, claim)
        return True

    def _write_down(self, delivery: Delivery) -> bool:
        """Make the record of a request that came inside its message; False if it cannot have one."""
        try:
            if delivery.request is not None:
                self._store.submit(delivery.job_id, delivery.request)
        except OrcdError as error:
            delivery.done(error)
            return False
        return True

    def _answer(self, delivery: Delivery, claim: Claim | ClaimStatus | OrcdError) -> None:
        if isinstance(claim, Claim):
            self._begin(ActiveJob(claim, self._prepare(claim), self._model, delivery.done))
        elif isinstance(claim, OrcdError):
            delivery.done(claim)
        elif claim == "unknown":
            delivery.done(InvalidRequest(f"job {delivery.job_id} is unknown or has expired; submit it again"))
        elif claim == "finished":
            # Its worker may have died between the job's last event and Celery's result.
            delivery.done(Repeated(fold(delivery.job_id, self._store.events(delivery.job_id))))
        elif delivery.waits:
            self._waiting.append(delivery)
        else:
            delivery.done(None)

    def _prepare(self, claim: Claim) -> Prompt | OrcdError:
        assert self._limits is not None, "start() comes before put()"
        if claim.attempt > self._max_attempts:
            return Poisoned(f"given up after {self._max_attempts} attempts that lost their worker")
        if claim.cancelled:
            return Cancelled("cancelled before it was started again")
        if claim.deadline_ms and claim.claimed_ms > claim.deadline_ms:
            return Expired("the deadline passed while the job was queued")
        if isinstance(claim.request, InvalidRequest):
            return claim.request
        try:
            return self._encoder.encode(claim.request, self._limits)
        except OrcdError as error:
            return error
        except Exception as error:  # a bug of ours must fail this job, not the thread that serves all others
            return OrcdError(f"the prompt could not be encoded ({type(error).__name__})")
