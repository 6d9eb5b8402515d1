"""The desk: one thread that owns every generation of a worker.

It alone feeds engine outputs to generations, writes their events to the token log and decides what happens when the
engine, a lease or a client is lost. Whoever else has something to say (the intake, the engine's reader, Celery) puts
it into the desk's mailbox.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import redis

from tasks.engine_process import EngineProcess
from tasks.generation import Generation, job_id_of
from tasks.intake import Done
from tasks.job import Append, Appended, JobStore, Message
from tasks.observe import Observer
from tasks.upkeep import Upkeep, Verdict
from worker import contract
from worker.errors import BY_CODE, Cancelled, EngineLost, OrcdError, Poisoned
from worker.settings import Settings

TICK_S = 0.1
MAX_MAIL = 256
MAX_FAILED_STARTS = 3
REST_SHARE = 10
"""The desk rests so many times as long as it worked, to leave the interpreter to Celery's event loop."""
LONGEST_REST_S = 0.1
DUE_WAIT_S = 0.004
"""So long a job's first or last words wait for those of others, to be written down with them, while the desk rests."""


@dataclass(frozen=True, slots=True)
class Job:
    """A claimed job and whom to tell what became of it."""

    generation: Generation
    done: Done


@dataclass(frozen=True, slots=True)
class Release:
    """Give all jobs back to the queue, then set ``released``."""

    released: threading.Event


@dataclass(frozen=True, slots=True)
class EngineExit:
    """The engine process has ended."""

    code: int


Mail = Job | Verdict | Release | EngineExit | contract.Event


class Desk:
    """Runs the jobs it is given on one engine process, which it starts and restarts.

    ``publish`` sends the Celery message of a job that should be run by somebody; ``on_lost`` is called when this worker
    can run no more jobs. ``loaded`` is set when the engine's first start has ended well, then ``limits`` is set, or
    not, then ``fatal`` is.
    """

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        observer: Observer,
        publish: Callable[[Message], None],
        on_lost: Callable[[], None],
    ) -> None:
        self.loaded = threading.Event()
        self.limits: contract.Ready | None = None
        self.fatal: OrcdError | None = None
        self.engine = EngineProcess(settings, self.put, lambda code: self.put(EngineExit(code)))
        self._settings = settings
        self._store = store
        self._observer = observer
        self._publish = publish
        self._on_lost = on_lost
        self._upkeep = Upkeep(store, settings, observer.worker_id, publish)
        self._jobs: dict[str, Job] = {}
        self._engine_up = False
        self._failed_starts = 0
        self._stopping = threading.Event()
        self._mail: SimpleQueue[Mail] = SimpleQueue()
        self._set_aside: Mail | None = None  # what ended a rest
        self._gathering = contract.Gathering()
        self._started: list[Job] = []
        self._thread = threading.Thread(target=self._run, name="desk", daemon=True)

    @property
    def num_jobs(self) -> int:
        """Jobs in hand."""
        return len(self._jobs)

    @property
    def is_alive(self) -> bool:
        """Whether anybody reads the mailbox."""
        return self._thread.is_alive()

    def put(self, mail: Mail) -> None:
        """Leave something for the desk; from any thread."""
        self._mail.put(mail)

    def start(self) -> None:
        """Start the engine and the thread."""
        self.engine.start()
        self._thread.start()

    def stop(self) -> None:
        """End both."""
        self._stopping.set()
        self.engine.stop()
        self._thread.join()
        self._upkeep.close()

    # Everything below runs on the desk's thread.

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                worked_s = time.thread_time()
                self.turn()
                self._keep_up()
                worked_s = time.thread_time() - worked_s
                self._rest(min(REST_SHARE * worked_s, LONGEST_REST_S))
        except Exception as error:  # a bug of ours: better another worker than one whose jobs stand still
            self._observer.crashed(error)
            self._on_lost()

    def turn(self) -> None:
        """Act on the mail that is there, waiting a little for the first, and write down what came of it."""
        touched: list[Job] = []
        for mail in self._collect():
            if isinstance(mail, contract.Outputs):
                self._gathering.add(mail.outputs)
                continue
            if not isinstance(mail, Job | contract.Stats):  # to the jobs that run these two make no difference
                touched += self._take(self._gathering.take())
            touched += self._handle(mail)
        touched += self._take(self._gathering.take())
        self._write({job.generation.job_id: job for job in self._started + touched}.values())
        self._started.clear()

    def _collect(self) -> Iterable[Mail]:
        try:
            if self._set_aside is not None:
                mail, self._set_aside = self._set_aside, None
                yield mail
            elif not (self._started or self._gathering):
                yield self._mail.get(timeout=TICK_S)
            for _ in range(MAX_MAIL):
                yield self._mail.get_nowait()
        except Empty:
            return

    def _rest(self, rest_s: float) -> None:
        """For a while, or until something rare happens, only start jobs, and say their first and last words.

        Other outputs pile up, of which each job then says one event: the more there is to do, the cheaper it gets.
        """
        end = time.monotonic() + rest_s
        write_at = end
        while self._set_aside is None and (now := time.monotonic()) < end:
            if now >= write_at:
                self._write(self._take(self._gathering.take_due()))
                write_at = end
            with suppress(Empty):
                match mail := self._mail.get(timeout=max(0.0, write_at - now)):
                    case Job():
                        self._started += self._start_job(mail)
                    case contract.Outputs():
                        self._gathering.add(mail.outputs)
                        if self._gathering.is_due:
                            write_at = min(write_at, now + DUE_WAIT_S)
                    case _:
                        self._set_aside = mail

    def _handle(self, mail: Mail) -> list[Job]:
        """Act on one mail other than outputs; returns the jobs that may have new events."""
        match mail:
            case Job():
                return self._start_job(mail)
            case Verdict(job_id=job_id, error=error):
                return self._end_job(job_id, error)
            case contract.Ready():
                return self._engine_ready(mail)
            case EngineExit(code=code):
                return self._engine_exited(code)
            case contract.Load():
                self._observer.load_progress(mail)
                self._announce_loading(mail)
            case contract.Fatal(code=code, message=message):
                self.fatal = BY_CODE.get(code, OrcdError)(message)
                if self.limits is not None:  # of the first start `wait_until_loaded` tells
                    self._observer.error(self.fatal)
            case contract.Stats():
                self._observer.stats(mail)
            case Release():
                self._release(mail)
        return []

    def _take(self, outputs: Iterable[contract.TokenOutput]) -> list[Job]:
        touched = []
        for output in outputs:
            job = self._jobs.get(job_id_of(output.request_id))
            if job is None or job.generation.request_id != output.request_id:
                continue  # of a job that is gone, or of an earlier claim of it
            abort = job.generation.take(output)
            if abort is not None:
                self.engine.send(abort)
            touched.append(job)
        return touched

    def _start_job(self, job: Job) -> list[Job]:
        generation = job.generation
        earlier = self._jobs.get(generation.job_id)
        if earlier is not None:  # its lease was lost, and the new claim is ours again
            self._drop(earlier)
        self._jobs[generation.job_id] = job
        self._observer.execute_start(generation)
        if self._engine_up:
            self._submit(generation)
        return [job]

    def _submit(self, generation: Generation) -> None:
        add = generation.add()
        if add is not None:
            self._gathering.expect(add.request_id)
            self.engine.send(add)

    def _end_job(self, job_id: str, error: OrcdError | None) -> list[Job]:
        job = self._jobs.get(job_id)
        if job is None:
            return []
        if error is None:
            self._drop(job)
            return []
        self.engine.send(contract.Abort(job.generation.request_id))
        job.generation.fail(error)
        return [job]

    def _drop(self, job: Job) -> None:
        """The job is somebody else's now."""
        self.engine.send(contract.Abort(job.generation.request_id))
        self._forget(job.generation)
        job.done(None)

    def _forget(self, generation: Generation) -> None:
        del self._jobs[generation.job_id]
        self._gathering.forget(generation.request_id)

    def _engine_ready(self, ready: contract.Ready) -> list[Job]:
        self._engine_up, self._failed_starts, self.limits = True, 0, ready
        self._observer.ready(ready)
        self.loaded.set()
        for job in self._jobs.values():
            self._submit(job.generation)
        return list(self._jobs.values())

    def _engine_exited(self, code: int) -> list[Job]:
        self._engine_up = False
        if self._stopping.is_set():
            return []
        if self.limits is None:
            self.fatal = self.fatal or EngineLost(f"the engine ended with {code} while it loaded the model")
            self.loaded.set()
            return []
        self._observer.engine_exited(code)
        self._failed_starts += 1
        if self._failed_starts > MAX_FAILED_STARTS:
            self._on_lost()
            return []
        for job in self._jobs.values():
            generation = job.generation
            generation.num_engine_losses += 1
            if generation.claim.attempt + generation.num_engine_losses > self._settings.max_attempts:
                generation.fail(Poisoned("given up: the engine died too many times while it ran this job"))
        if self._failed_starts > 1:
            self._stopping.wait(2.0 ** (self._failed_starts - 2))
        self.engine.restart()
        return list(self._jobs.values())

    def _release(self, mail: Release) -> None:
        """Hand unfinished jobs to whoever claims them next; they go on from the last logged token."""
        self._write(list(self._jobs.values()))
        try:
            for message in self._store.release(
                {job_id: job.generation.claim.epoch for job_id, job in self._jobs.items()}
            ):
                self._publish(message)
        except Exception as error:  # Redis or the broker is away: the leases run out and a reaper takes the jobs
            self._observer.trouble("release", error)
        for job in list(self._jobs.values()):
            self._drop(job)
        mail.released.set()

    def _write(self, jobs: Iterable[Job]) -> None:
        """Append what the jobs have to say, until none has anything left; those dropped meanwhile say nothing."""
        while jobs := [job for job in jobs if self._jobs.get(job.generation.job_id) is job]:
            appends = [job.generation.take_append() for job in jobs]
            answers = self._append([append for append in appends if append.events])
            again = []
            for job, append in zip(jobs, appends, strict=True):
                answer = answers.get(append.job_id)
                if answer is not None and self._settle(job, answer):
                    again.append(job)
            jobs = again

    def _settle(self, job: Job, answer: Appended) -> bool:
        """Act on what an append found; True if the job has more to say."""
        generation = job.generation
        if not answer.owned:
            self._drop(job)
            return False
        if answer.num_listeners:
            generation.last_listened = time.monotonic()
        if generation.ended:
            self._forget(generation)
            self._observer.execute_end(generation)
            job.done(generation.result)
            return False
        if answer.cancelled:
            return bool(self._end_job(generation.job_id, Cancelled("cancelled")))
        return False

    def _append(self, appends: list[Append]) -> dict[str, Appended]:
        """Write to the token log, however long Redis is away: nothing that was generated is dropped."""
        delay_s = 0.05
        while not self._stopping.is_set():
            try:
                answers = self._store.append(appends)
                return {append.job_id: answer for append, answer in zip(appends, answers, strict=True)}
            except redis.RedisError as error:
                self._observer.trouble("append", error)
                self._stopping.wait(delay_s)
                delay_s = min(2 * delay_s, 2.0)
        return {}

    def _keep_up(self) -> None:
        silent_s = time.monotonic() - self.engine.last_heard
        if self._engine_up and self._jobs and silent_s > self._settings.engine_step_timeout_s:
            self._observer.engine_hung(silent_s)
            self.engine.kill()
        generations = [job.generation for job in self._jobs.values()]
        try:
            verdicts = self._upkeep.run(generations, self._observer.gauges(len(generations)))
        except Exception as error:  # Redis or the broker is away: the chores come up again
            self._observer.trouble("upkeep", error)
            return
        for verdict in verdicts:
            self._write(self._end_job(verdict.job_id, verdict.error))

    def _announce_loading(self, load: contract.Load) -> None:
        try:
            self._store.announce_loading(load.percent, load.remaining_ms)
        except redis.RedisError as error:
            self._observer.trouble("loading", error)
