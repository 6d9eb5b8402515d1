"""The one thread that owns all active jobs of a worker.

It alone feeds engine outputs to jobs, writes their events to the token log and decides what happens when the engine, a
lease or a client is lost. Whoever else has something to say (the claimer, the engine's reader, Celery) puts it into
the event queue.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import redis

from orcd.errors import Cancelled, OrcdError
from orcd.store.enqueue import Message
from orcd.store.job_store import Appended, JobStore
from tasks.dispatch.active_job import ActiveJob, job_id_of
from tasks.dispatch.engine_supervisor import EngineExit, EngineSupervisor
from tasks.dispatch.log_writer import LogWriter
from tasks.dispatch.maintenance import Maintenance, Termination
from tasks.dispatch.output_batcher import OutputBatcher, throttle_interval_s
from tasks.observe.observer import Observer
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
    can run no more jobs.
    """

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        observer: Observer,
        publish: Callable[[Message], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._store = store
        self._observer = observer
        self._publish = publish
        self._on_lost = on_lost
        self._stopping = threading.Event()
        self._events: SimpleQueue[RunnerEvent] = SimpleQueue()
        self._pending: RunnerEvent | None = None  # what ended a throttle interval
        self._jobs: dict[str, ActiveJob] = {}
        self._started: list[ActiveJob] = []
        self.engine = EngineSupervisor(settings, observer, self.put, on_lost, self._stopping)
        self._batcher = OutputBatcher()
        self._log_writer = LogWriter(store, observer, self._stopping)
        self._maintenance = Maintenance(store, settings, observer.worker_id, publish)
        self._thread = threading.Thread(target=self._run, name="job runner", daemon=True)

    @property
    def num_jobs(self) -> int:
        """Jobs in flight."""
        return len(self._jobs)

    @property
    def is_alive(self) -> bool:
        """Whether anybody reads the event queue."""
        return self._thread.is_alive()

    def put(self, event: RunnerEvent) -> None:
        """Queue an event; from any thread."""
        self._events.put(event)

    def start(self) -> None:
        """Start the engine and the thread."""
        self.engine.process.start()
        self._thread.start()

    def stop(self) -> None:
        """End both."""
        self._stopping.set()
        self.engine.process.stop()
        self._thread.join()
        self._maintenance.close()

    # Everything below runs on the job runner's thread.

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                worked_s = time.thread_time()
                self.run_batch()
                self._run_maintenance()
                worked_s = time.thread_time() - worked_s
                self._throttle(throttle_interval_s(worked_s))
        except Exception as error:  # a bug of ours: better another worker than one whose jobs stand still
            self._observer.log.crashed(error)
            self._on_lost()

    def run_batch(self) -> None:
        """Act on the events that are there, waiting a little for the first, and write down what came of them."""
        since = time.monotonic()
        changed: list[ActiveJob] = []
        for event in self._next_events():
            if isinstance(event, contract.Outputs):
                self._batcher.add(event.outputs, since)
                continue
            if not isinstance(event, ActiveJob | contract.Stats):  # to the jobs that run these two make no difference
                changed += self._process(self._batcher.take_all())
            changed += self._handle(event)
        changed += self._process(self._batcher.take_all())
        self._write(self._started + changed)
        self._started.clear()

    def _next_events(self) -> Iterable[RunnerEvent]:
        try:
            if self._pending is not None:
                event, self._pending = self._pending, None
                yield event
            elif not (self._started or self._batcher):
                yield self._events.get(timeout=TICK_S)
            for _ in range(MAX_BATCH_EVENTS):
                yield self._events.get_nowait()
        except Empty:
            return

    def _throttle(self, interval_s: float) -> None:
        """For a while, or until something rare happens, only start jobs, and write their first and final outputs.

        Other outputs pile up, of which each job then makes one event: the more there is to do, the cheaper it gets.
        """
        batcher = self._batcher
        batcher.throttle(interval_s)
        while self._pending is None and (now := time.monotonic()) < batcher.interval_end:
            if now >= batcher.write_at:
                self._write(self._process(batcher.take_due()))
            with suppress(Empty):
                match event := self._events.get(timeout=max(0.0, batcher.write_at - now)):
                    case ActiveJob():
                        self._started += self._start_job(event)
                    case contract.Outputs():
                        batcher.add(event.outputs, now)
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
                    self._submit(job)
                return list(self._jobs.values())
            case EngineExit(code=code):
                self.engine.exited(code, self._jobs.values())
                return list(self._jobs.values())
            case contract.Load():
                self._observer.log.load_progress(event)
                self._announce_loading(event)
            case contract.Fatal():
                self.engine.failed(event)
            case contract.Stats():
                self._observer.stats(event)
            case Release():
                self._release(event)
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
            changed.append(job)
        return changed

    def _start_job(self, job: ActiveJob) -> list[ActiveJob]:
        earlier = self._jobs.get(job.job_id)
        if earlier is not None:  # its lease was lost, and the new claim is ours again
            self._drop(earlier)
        self._jobs[job.job_id] = job
        self._observer.log.execute_start(job)
        if self.engine.is_up:
            self._submit(job)
        return [job]

    def _submit(self, job: ActiveJob) -> None:
        add = job.add()
        if add is not None:
            self._batcher.expect_first(add.request_id)
            self.engine.process.send(add)

    def _terminate(self, termination: Termination) -> list[ActiveJob]:
        job = self._jobs.get(termination.job_id)
        if job is None:
            return []
        if termination.error is None:
            self._drop(job)
            return []
        self._fail(job, termination.error)
        return [job]

    def _fail(self, job: ActiveJob, error: OrcdError) -> None:
        self.engine.process.send(contract.Abort(job.request_id))
        job.fail(error)

    def _drop(self, job: ActiveJob) -> None:
        """The job is somebody else's now."""
        self.engine.process.send(contract.Abort(job.request_id))
        self._forget(job)
        job.done(None)

    def _forget(self, job: ActiveJob) -> None:
        del self._jobs[job.job_id]
        self._batcher.forget(job.request_id)

    def _release(self, release: Release) -> None:
        """Hand unfinished jobs to whoever claims them next; they go on from the last logged token."""
        self._write(self._jobs.values())
        try:
            for message in self._store.release({job_id: job.claim.epoch for job_id, job in self._jobs.items()}):
                self._publish(message)
        except Exception as error:  # Redis or the broker is away: the leases run out and a reaper takes the jobs
            self._observer.log.trouble("release", error)
        for job in list(self._jobs.values()):
            self._drop(job)
        release.released.set()

    def _write(self, jobs: Iterable[ActiveJob]) -> None:
        """Write what the jobs have to say, until none has anything left; those dropped meanwhile say nothing."""
        while jobs := [job for job in dict.fromkeys(jobs) if self._jobs.get(job.job_id) is job]:
            jobs = [job for job, answer in self._log_writer.append(jobs) if self._settle(job, answer)]

    def _settle(self, job: ActiveJob, answer: Appended) -> bool:
        """Act on what an append found; True if the job has more to say."""
        if not answer.owned:
            self._drop(job)
        elif job.ended:
            self._forget(job)
            self._observer.job_ended(job)
            job.done(job.result)
        elif answer.cancelled:
            self._fail(job, Cancelled("cancelled"))
            return True
        return False

    def _run_maintenance(self) -> None:
        if self._jobs:
            self.engine.kill_if_hung()
        try:
            terminations = self._maintenance.run(list(self._jobs.values()), self._observer.heartbeat(len(self._jobs)))
        except Exception as error:  # Redis or the broker is away: the chores come up again
            self._observer.log.trouble("upkeep", error)
            return
        for termination in terminations:
            self._write(self._terminate(termination))

    def _announce_loading(self, load: contract.Load) -> None:
        try:
            self._store.announce_loading(load.percent, load.remaining_ms)
        except redis.RedisError as error:
            self._observer.log.trouble("loading", error)
