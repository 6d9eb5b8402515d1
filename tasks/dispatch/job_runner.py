"""The one thread that owns all active jobs of a worker.

It alone feeds engine outputs to jobs, writes their events to the token log and decides what happens when the engine, a
lease or a client is lost. Whoever else has something to say (the claimer, the engine's reader, the lease keeper,
maintenance, Celery) puts it into the event queue.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue

import redis

from orcd.errors import Cancelled, LogDamaged, OrcdError
from orcd.store.enqueue import Message, publish_all
from orcd.store.job_store import Appended, JobStore
from tasks.dispatch.active_job import ActiveJob, Termination, job_id_of
from tasks.dispatch.admission import Admission
from tasks.dispatch.delivery import Fenced
from tasks.dispatch.engine.engine_process import EngineExit
from tasks.dispatch.engine.engine_run import EngineRun
from tasks.dispatch.engine.engine_supervisor import EngineSupervisor
from tasks.dispatch.lease_keeper import LeaseKeeper
from tasks.dispatch.log_writer import LogWriter
from tasks.dispatch.output_batcher import OutputBatcher, throttle_interval_s
from tasks.observe.observer import Observer
from tasks.supervised_thread import OnDeath, SupervisedThread
from worker import contract
from worker.settings import Settings

TICK_S = 0.1
MAX_BATCH_EVENTS = 256


@dataclass(frozen=True, slots=True)
class Release:
    """Give all jobs back to the queue, then set ``released``."""

    released: threading.Event


RunnerEvent = ActiveJob | Termination | Release | EngineExit | contract.Event


class JobRunner:
    """Runs the jobs it is given on one engine process.

    ``publish`` sends the Celery message of a job that should be run by somebody; ``on_lost`` is called when this worker
    can run no more jobs, and ``on_death`` when one of the threads here has ended.
    """

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        observer: Observer,
        publish: Callable[[Message], None],
        on_lost: Callable[[], None],
        on_death: OnDeath,
    ) -> None:
        self._store = store
        self._observer = observer
        self._publish = publish
        self._events: SimpleQueue[RunnerEvent] = SimpleQueue()
        self._pending: RunnerEvent | None = None  # what ended a throttle interval
        self._jobs: dict[str, ActiveJob] = {}
        self._started: list[ActiveJob] = []
        self._batcher = OutputBatcher()
        self._thread = SupervisedThread("job runner", self._run, on_death)
        self._log_writer = LogWriter(store, observer, self._thread.stopping)
        self.engine = EngineSupervisor(settings, observer, self.put, on_lost, on_death, self._thread.stopping)
        self.admission = Admission(self.engine, self._batcher, observer, self.put)
        failed = partial(observer.log.retrying, "renew")
        self.leases = LeaseKeeper(store, settings.lease_ms, lambda: observer.is_ready, self.put, failed, on_death)

    @property
    def is_alive(self) -> bool:
        """Whether anybody reads the event queue."""
        return self._thread.is_alive

    def jobs(self) -> list[ActiveJob]:
        """The jobs in flight at this moment; from any thread."""
        return list(self._jobs.copy().values())

    def put(self, event: RunnerEvent) -> None:
        """Queue an event; from any thread."""
        self._events.put(event)

    def start(self, engine_run: EngineRun | None = None) -> None:
        """Start the engine, unless ``engine_run`` is there already, and the threads."""
        self.engine.process.start(engine_run)
        self.leases.start()
        self._thread.start()

    def stop(self, timeout_s: float, engine_timeout_s: float) -> None:
        """End the engine, by killing it after ``engine_timeout_s``, and the threads but those that wait for Redis."""
        end = time.monotonic() + timeout_s
        self._thread.stop()
        self.engine.process.stop(engine_timeout_s if self.engine.is_up else 0.0)
        self._thread.join(end - time.monotonic())
        self.leases.stop(end - time.monotonic())

    def abandon(self) -> None:
        """Give all jobs back in place of the thread, which has died."""
        with suppress(Empty):
            while True:
                if isinstance(event := self._events.get_nowait(), ActiveJob):
                    self._jobs[event.job_id] = event
        self._give_back(self.jobs())

    # Everything below runs on the job runner's thread.

    def _run(self) -> None:
        while not self._thread.stopping.is_set():
            before_s = time.thread_time()
            self.run_batch()
            self.engine.supervise(has_jobs=bool(self._jobs))
            self._throttle(throttle_interval_s(time.thread_time() - before_s))

    def run_batch(self) -> None:
        """Act on the events that are there, waiting a little for the first, and write down what came of them."""
        changed: list[ActiveJob] = []
        for event in self._next_events():
            if isinstance(event, contract.Outputs):
                self._batcher.add(event.outputs)
                continue
            if not isinstance(event, ActiveJob | contract.Stats):  # to the jobs that run these two make no difference
                changed += self._process(self._batcher.take_all())
            changed += self._handle(event)
        self._write(self._started + changed + self._process(self._batcher.take_batch()))
        self._started = self.admission.update(self._jobs.values())
        self._observer.log.flush()

    def _next_events(self) -> Iterable[RunnerEvent]:
        try:
            if self._pending is not None:
                event, self._pending = self._pending, None
                yield event
            elif not self._started and (wait_s := self._batcher.wait_s()) != 0.0:
                yield self._events.get(timeout=TICK_S if wait_s is None else min(wait_s, TICK_S))
            for _ in range(MAX_BATCH_EVENTS):
                yield self._events.get_nowait()
        except Empty:
            return

    def _throttle(self, interval_s: float) -> None:
        """For a while, or until something rare happens, only start jobs, and write their first and final outputs.

        Other outputs pile up, of which each job then makes one event: the more there is to do, the cheaper it gets.
        """
        (batcher := self._batcher).throttle(interval_s)
        while self._pending is None and (left_s := batcher.interval_end - time.monotonic()) > 0:
            try:
                event = self._events.get(timeout=0.0 if batcher.has_due else left_s)
            except Empty:  # what is due has waited for all that had come
                self._write(self._process(batcher.take_due()))
                continue
            match event:
                case ActiveJob():
                    self._started += self._start_job(event)
                case contract.Outputs():
                    batcher.add(event.outputs)
                case _:
                    self._pending = event

    def _handle(self, event: RunnerEvent) -> list[ActiveJob]:
        """Act on one event other than outputs; returns the jobs that may have new events in their logs."""
        match event:
            case ActiveJob():
                return self._start_job(event)
            case Termination():
                return self._terminate(event)
            case contract.Ready():
                self.engine.ready(event)
                for job in self._jobs.values():
                    self.admission.submit(job)
                return list(self._jobs.values())
            case EngineExit():
                if self.engine.exited(event):
                    self.admission.engine_died(event, self._jobs.values())
                return list(self._jobs.values())
            case contract.Load():
                self._observer.loads(event)
            case contract.Fatal():
                self.engine.failed(event)
            case contract.Stats():
                self._observer.stats(event)
            case Release():
                self._write(self._jobs.values())
                self._give_back(self.jobs())
                event.released.set()
        return []

    def _process(self, outputs: Iterable[contract.TokenOutput]) -> list[ActiveJob]:
        """Feed outputs to their jobs; returns these."""
        changed = []
        for output in outputs:
            job = self._jobs.get(job_id_of(output.request_id))
            if job is None or job.request_id != output.request_id:
                continue  # of a job that is gone, or of an earlier claim of it
            abort = job.process(output)
            if abort is not None:
                self.engine.process.send(abort)
            self.admission.advanced(job)
            changed.append(job)
        return changed

    def _start_job(self, job: ActiveJob) -> list[ActiveJob]:
        if (earlier := self._jobs.get(job.job_id)) is not None:  # its lease was lost, and the new claim is ours again
            self._drop(earlier)
        self._jobs[job.job_id] = job
        self.admission.submit(job)
        self._observer.job_started(job)
        return [job]

    def _terminate(self, termination: Termination) -> list[ActiveJob]:
        job = self._jobs.get(termination.job_id)
        if job is None or not termination.concerns(job):
            return []
        if termination.error is None:
            self._drop(job)
            return []
        self._fail(job, termination.error)
        return [job]

    def _fail(self, job: ActiveJob, error: OrcdError) -> None:
        self.engine.process.send(contract.Abort(job.request_id))
        job.fail(error)

    def _drop(self, job: ActiveJob, *, is_lost: bool = True) -> None:
        """The job is somebody else's now: its lease is lost, or it was given back."""
        self._observer.job_dropped(job, is_lost=is_lost)
        self.engine.process.send(contract.Abort(job.request_id))
        self._forget(job)
        job.done(Fenced() if is_lost else None)

    def _forget(self, job: ActiveJob) -> None:
        del self._jobs[job.job_id]
        self._batcher.forget(job.request_id)
        self.admission.left(job)
        self.leases.drop(job.job_id, job.claim.lease)

    def _give_back(self, jobs: Sequence[ActiveJob]) -> None:
        """Put jobs back into the queue; whoever claims one next goes on from what its log then holds."""
        messages: list[Message] = []
        try:
            messages = self._store.release({job.job_id: job.claim.lease for job in jobs})
        except redis.RedisError as error:  # the leases run out, and a reaper takes the jobs
            self._observer.log.retrying("release", error)
        for job in jobs:
            self._drop(job, is_lost=False)
        left, refusal = publish_all(messages, self._publish)
        if refusal is not None:  # a reaper publishes what waits in the queue
            self._observer.log.unannounced(len(left), refusal)

    def _write(self, jobs: Iterable[ActiveJob]) -> None:
        """Write what the jobs have to say, until none has anything left; those dropped meanwhile say nothing."""
        while jobs := [job for job in dict.fromkeys(jobs) if self._jobs.get(job.job_id) is job]:
            jobs = [job for job, answer in self._log_writer.append(jobs) if self._settle(job, answer)]

    def _settle(self, job: ActiveJob, answer: Appended) -> bool:
        """Act on what an append found; True if the job has more to say."""
        self._batcher.set_quiet(job.request_id, is_quiet=not (answer.num_listeners or job.may_stop))
        match answer.status:
            case "fenced":
                self._drop(job)
            case "conflict":  # Redis has forgotten, or kept, what we did not expect
                self._give_back([job])
            case "damaged":
                self._end_damaged(job)
            case "appended" if job.ended:
                self._finish(job)
            case "appended" if answer.cancelled:
                self._process(self._batcher.take_of(job.request_id))  # its error comes behind what was drawn
                self._fail(job, Cancelled("cancelled"))
                return True
        return False

    def _end_damaged(self, job: ActiveJob) -> None:
        """End a job whose log cannot be written, as far as its record allows."""
        error = LogDamaged(f"job {job.job_id}: its token log cannot be written; submit it again under another id")
        try:
            self._store.end_damaged(job.job_id, job.claim.lease, error)
        except redis.RedisError as failure:  # its lease runs out, and whoever claims it next ends it
            self._observer.log.retrying("end", failure)
        self.engine.process.send(contract.Abort(job.request_id))
        job.discard(error)
        self._finish(job)

    def _finish(self, job: ActiveJob) -> None:
        """The job's terminal event is written."""
        self._forget(job)
        self._observer.job_ended(job, result := job.result)
        job.done(result)
