"""How delivered jobs become active: claimed in Redis, their text turned into token ids."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from heapq import heappop, heappush
from itertools import count
from queue import Empty, SimpleQueue
from typing import TypeVar

import redis

from orcd.errors import Cancelled, Expired, InvalidRequest, OrcdError, Poisoned
from orcd.request import Request
from orcd.result import fold
from orcd.store.backoff import Backoff, retry
from orcd.store.claim import Claim, ClaimStatus
from orcd.store.job_store import Arrival, JobStore
from tasks.dispatch.active_job import ActiveJob
from tasks.dispatch.delivery import Answer, Delivery, Outcome, Repeated, Unknown
from tasks.dispatch.lease_keeper import LeaseKeeper
from tasks.dispatch.long_prompts import LongPrompt, LongPrompts
from tasks.dispatch.prompt_encoder import Prompt, PromptEncoder, TakesLong
from tasks.observe.observer import Observer
from tasks.supervised_thread import OnDeath, SupervisedThread
from worker import contract

FIRST_LOOK_S = 0.2
MAX_LOOK_S = 2.0
"""How soon a delivery that waits for somebody else's job looks at it again."""
MAX_CLAIMS = 16
"""Jobs claimed in one call: so many short prompts are encoded before the last of them begins."""

T = TypeVar("T")


@dataclass(slots=True, eq=False)
class _Turn:
    """A delivery that is to be claimed: at once, and where somebody else has its job ever less often after that."""

    delivery: Delivery
    pauses: Backoff = field(default_factory=lambda: Backoff(FIRST_LOOK_S, MAX_LOOK_S))
    is_written: bool = False


class Claimer:
    """A thread that claims the jobs that were delivered and passes each that is ours to ``begin``, in order.

    Jobs that take long to encode have other threads: they begin in order among themselves, later than shorter ones.
    Every delivery's ``done`` is called once: by the claimer, or by whoever runs the job that began.
    """

    def __init__(
        self,
        store: JobStore,
        encoder: PromptEncoder,
        max_attempts: int,
        ageing_s: int,
        observer: Observer,
        leases: LeaseKeeper,
        begin: Callable[[ActiveJob], None],
        on_death: OnDeath,
    ) -> None:
        self._store = store
        self._encoder = encoder
        self._max_attempts = max_attempts
        self._ageing_s = ageing_s
        self._observer = observer
        self._leases = leases
        self._begin = begin
        self._engine: contract.Ready | None = None
        self._arriving: SimpleQueue[_Turn | None] = SimpleQueue()
        self._waiting: list[tuple[float, int, _Turn]] = []  # a heap: when its turn comes, and what makes entries differ
        self._counter = count()
        self._lock = threading.Lock()
        self._undecided: dict[str, OrcdError | None] = {}  # accepted jobs, with what they were cancelled by
        self._num_held = 0
        self._long_prompts = LongPrompts(self._begin_long, self._give_back, on_death)
        self._thread = SupervisedThread("claimer", self._run, on_death)

    @property
    def num_held(self) -> int:
        """Sequences of the jobs that were handed in and have not ended, but for those that somebody else runs.

        A job counts as one until its request is known.
        """
        return self._num_held

    def start(self, engine: contract.Ready) -> None:
        """Begin to claim jobs for this engine."""
        self._engine = engine
        self._long_prompts.start()
        self._thread.start()

    def put(self, delivery: Delivery) -> None:
        """Hand in a delivery; its ``done`` is called once, unless the claimer is stopped before its turn."""
        with self._lock:
            self._undecided.setdefault(delivery.job_id)
            self._num_held += 1
        self._arriving.put(_Turn(delivery))

    def cancel(self, job_id: str, error: OrcdError) -> bool:
        """End a job with ``error`` as soon as it is claimed; False if it is not one that waits for that here."""
        with self._lock:
            waits = job_id in self._undecided
            if waits:
                self._undecided[job_id] = error
        return waits

    def ask_to_stop(self) -> None:
        """Finish the deliveries that were begun and leave the others unclaimed: their messages are delivered again."""
        self._thread.stop()
        self._arriving.put(None)
        self._long_prompts.ask_to_stop()

    def stop(self, timeout_s: float) -> None:
        """Give back jobs with long prompts. What was begun and is not finished in time is left: its lease runs out."""
        end = time.monotonic() + timeout_s
        self.ask_to_stop()
        self._thread.join(timeout_s)
        self._encoder.interrupt()
        self._long_prompts.stop(end - time.monotonic())

    def _run(self) -> None:
        while not self._thread.stopping.is_set():
            self._take(self._next())

    def _next(self) -> list[_Turn]:
        """The next deliveries, waited for, and those that are to look again at somebody else's job."""
        timeout_s = max(0.0, self._waiting[0][0] - time.monotonic()) if self._waiting else None
        arrived: list[_Turn | None] = []
        with suppress(Empty):
            arrived.append(self._arriving.get(timeout=timeout_s))
            while len(arrived) < MAX_CLAIMS:
                arrived.append(self._arriving.get_nowait())
        turns = [turn for turn in arrived if turn is not None]
        while self._waiting and self._waiting[0][0] <= time.monotonic() and len(turns) < 2 * MAX_CLAIMS:
            turns.append(heappop(self._waiting)[2])
            self._hold(1)
        return turns

    def _take(self, turns: Sequence[_Turn]) -> None:
        """Write down what deliveries brought, claim their jobs, and decide on each of them."""
        assert self._engine is not None, "start() comes before the thread"
        turns = self._written(turns)
        job_ids, fingerprint = [turn.delivery.job_id for turn in turns], self._engine.fingerprint
        tokens = self._store.new_tokens(len(turns))
        claims = self._retry("claim", lambda: self._store.claim(job_ids, fingerprint, tokens)) if turns else None
        if claims is None:
            return
        for mine in [claim for claim in claims if isinstance(claim, Claim)]:
            self._leases.keep(mine.job_id, mine.lease)
        for turn, claim in zip(turns, claims, strict=True):
            self._decide(turn, claim)

    def _written(self, turns: Sequence[_Turn]) -> list[_Turn]:
        """Note in Redis what came with new messages; returns the turns that are to be claimed."""
        new = [turn for turn in turns if not turn.is_written]
        bringing = [turn for turn in new if turn.delivery.request is not None or turn.delivery.message is not None]
        arrive = partial(self._store.arrive, [turn.delivery.arrival for turn in bringing])
        answers = self._retry("arrive", arrive) if bringing else []
        if answers is None:
            return []
        for turn in new:
            turn.is_written = True
        refused = {turn: error for turn, error in zip(bringing, answers, strict=True) if error is not None}
        for turn, error in refused.items():
            self._observer.log.refused(turn.delivery.job_id, error)
            self._answer(turn.delivery, error)
        return [turn for turn in turns if turn not in refused]

    def _decide(self, turn: _Turn, claim: Claim | ClaimStatus | OrcdError) -> None:
        delivery, job_id = turn.delivery, turn.delivery.job_id
        if isinstance(claim, Claim):
            self._begin_job(delivery, claim)
        elif isinstance(claim, OrcdError):
            self._answer(delivery, claim)
        elif claim == "unknown" and delivery.request is not None:  # Redis has forgotten what was just written
            turn.is_written = False
            self._look_again(turn)
        elif claim == "unknown":
            self._answer(delivery, Unknown())
        elif claim == "finished":
            self._repeat(delivery)
        else:
            cancelled = self._undecided.get(job_id)
            if cancelled is not None:
                self._retry("cancel", lambda: self._store.cancel(job_id, cancelled))
            if delivery.waits:
                self._look_again(turn)
            else:
                self._answer(delivery, None)

    def _look_again(self, turn: _Turn) -> None:
        """Claim the delivery's job again after a pause."""
        self._hold(-1)
        heappush(self._waiting, (time.monotonic() + turn.pauses.next_s(), next(self._counter), turn))

    def _answer(self, delivery: Delivery, outcome: Answer) -> None:
        with self._lock:
            self._undecided.pop(delivery.job_id, None)
            self._num_held -= 1
        delivery.done(outcome)

    def _hold(self, num_sequences: int) -> None:
        with self._lock:
            self._num_held += num_sequences

    def _repeat(self, delivery: Delivery) -> None:
        """Answer with what is there: a worker may have died between a job's terminal event and Celery's result."""
        try:
            events = self._retry("read", lambda: self._store.events(delivery.job_id))
            outcome: Outcome = None if events is None else Repeated(fold(delivery.job_id, events))
        except OrcdError as error:
            outcome = error
        if outcome is not None:  # else the claimer stops
            self._answer(delivery, outcome)

    def _begin_job(self, delivery: Delivery, claim: Claim) -> None:
        message = delivery.message
        if message is not None and message.task_id not in claim.recorded:  # Redis has forgotten it since it arrived
            arrival = Arrival(claim.job_id, None, message)
            self._retry("arrive", lambda: self._store.arrive([arrival]))
        try:
            self._begin_with(delivery, claim, self._prepare(claim, self._encoder.encode))
        except TakesLong as long:
            self._long_prompts.put(LongPrompt(delivery, claim, long.lane))

    def _begin_long(self, long: LongPrompt) -> None:
        """Encode a long prompt, on the thread of its lane; unless it was cancelled while it waited."""
        encode = partial(self._encoder.encode_long, lane=long.lane)
        prompt = self._undecided.get(long.claim.job_id) or self._prepare(long.claim, encode)
        if self._long_prompts.is_stopping:
            self._give_back(long)
        else:
            self._begin_with(long.delivery, long.claim, prompt)

    def _give_back(self, long: LongPrompt) -> None:
        """Put a job back into the queue: this worker leaves, and with it the job's message goes to another one."""
        claim = long.claim
        try:
            self._store.release({claim.job_id: claim.lease})
        except redis.RedisError as error:  # its lease runs out, and a reaper takes it
            self._observer.log.retrying("release", error)
        self._leases.drop(claim.job_id, claim.lease)
        self._answer(long.delivery, None)

    def _begin_with(self, delivery: Delivery, claim: Claim, prompt: Prompt | OrcdError) -> None:
        assert self._engine is not None
        limits = [limit for limit in (claim.time_limit_s, delivery.time_limit_s) if limit]
        num_sequences = claim.request.n if isinstance(claim.request, Request) else 1

        def done(outcome: Answer) -> None:
            self._hold(-num_sequences)
            delivery.done(outcome)

        try:
            job = ActiveJob(claim, prompt, self._engine, done, min(limits, default=None), self._ageing_s)
        except Exception as error:  # a bug of ours must end this job, not the thread that serves all others
            self._observer.log.crashed(error)
            failure = OrcdError(f"the job could not be begun ({type(error).__name__})")
            self._retry("end", lambda: self._store.end_damaged(claim.job_id, claim.lease, failure))
            self._leases.drop(claim.job_id, claim.lease)
            self._answer(delivery, failure)
            return
        with self._lock:  # whoever cancels it from now on finds it with the job runner
            cancelled = self._undecided.pop(claim.job_id, None)
            if cancelled is not None:
                job.fail(cancelled)
            self._num_held += num_sequences - 1
            self._begin(job)

    def _prepare(self, claim: Claim, encode: Callable[[Request, contract.Ready], Prompt]) -> Prompt | OrcdError:
        """The prompt by ``encode``, or why the job ends before it has begun. Raises `TakesLong`."""
        assert self._engine is not None
        if claim.losses >= self._max_attempts:
            return Poisoned(f"given up after {self._max_attempts} attempts that lost their worker")
        if claim.cancelled:
            return Cancelled("cancelled before it was started again")
        if claim.deadline_ms and claim.claimed_ms > claim.deadline_ms:
            return Expired("the deadline passed while the job was queued")
        if isinstance(claim.request, InvalidRequest):
            return claim.request
        try:
            return encode(claim.request, self._engine)
        except TakesLong:
            raise
        except OrcdError as error:
            return error.with_traceback(None)  # its frames hold the prompt, and what became of it so far
        except Exception as error:  # likewise
            return OrcdError(f"the prompt could not be encoded ({type(error).__name__})")

    def _retry(self, doing: str, call: Callable[[], T]) -> T | None:
        """What Redis answers, however long it is away; None if the claimer stops meanwhile."""
        return retry(call, self._thread.stopping, partial(self._observer.log.retrying, doing))
