"""Where jobs, engine and token log meet.

The *desk* is one thread that owns every `Generation`: it alone feeds engine outputs to them, writes their events to
the token log and decides what happens when the engine, a lease or a client is lost. Whoever else has something to say
(the intake, the engine's reader, Celery) puts it into the desk's mailbox.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

import redis

from tasks.engine_process import EngineProcess
from tasks.generation import Generation
from tasks.intake import Delivery, Done, Intake
from tasks.job import Append, Appended, JobStore, Message
from tasks.observe import Observer
from tasks.prompt import PromptEncoder
from tasks.upkeep import Upkeep, Verdict
from worker import contract
from worker.errors import BY_CODE, Cancelled, EngineLost, OrcdError, Poisoned
from worker.settings import Settings

TICK_S = 0.1
MAX_MAIL = 256
MAX_FAILED_STARTS = 3


@dataclass(frozen=True, slots=True)
class _Job:
    generation: Generation
    done: Done


@dataclass(frozen=True, slots=True)
class _Release:
    released: threading.Event


@dataclass(frozen=True, slots=True)
class _EngineExit:
    code: int


_Mail = _Job | Verdict | _Release | _EngineExit | contract.Event


class Dispatcher:
    """Runs the jobs it is given on one engine.

    ``publish`` sends the Celery message of a job that should be run by somebody; ``on_engine_lost`` is called when the
    engine cannot be brought back.
    """

    def __init__(
        self,
        settings: Settings,
        store: JobStore,
        encoder: PromptEncoder,
        observer: Observer,
        publish: Callable[[Message], None],
        on_engine_lost: Callable[[], None],
    ) -> None:
        self._settings = settings
        self._store = store
        self._observer = observer
        self._publish = publish
        self._on_engine_lost = on_engine_lost
        self._engine = EngineProcess(settings, self._put, lambda code: self._put(_EngineExit(code)))
        self._intake = Intake(store, encoder, observer.model, settings.max_attempts, self._begin)
        self._upkeep = Upkeep(store, settings, observer.worker_id, publish)
        self._jobs: dict[str, _Job] = {}
        self._limits: contract.Ready | None = None
        self._fatal: OrcdError | None = None
        self._engine_up = False
        self._failed_starts = 0
        self._stopping = threading.Event()
        self._loaded = threading.Event()
        self._mail: SimpleQueue[_Mail] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="desk", daemon=True)

    @property
    def num_jobs(self) -> int:
        """Jobs in hand."""
        return len(self._jobs)

    @property
    def engine_pid(self) -> int | None:
        """Process id of the engine, None while there is none."""
        return self._engine.pid

    def start(self) -> None:
        """Start the engine and the desk; jobs are taken once `wait_until_loaded` has said so."""
        self._engine.start()
        self._thread.start()

    def wait_until_loaded(self, timeout_s: float) -> bool:
        """Whether the engine is ready. Raises the error that its first start ended with."""
        if not self._loaded.wait(timeout_s):
            return False
        if self._limits is None:
            assert self._fatal is not None, "it is set before the event"
            raise self._fatal
        self._intake.start(self._limits)
        return True

    def accept(self, delivery: Delivery) -> None:
        """Take a job on; its ``done`` is called once with what became of it."""
        self._intake.put(delivery)

    def cancel(self, job_id: str) -> None:
        """End a job that is in hand; others are ignored."""
        self._put(Verdict(job_id, Cancelled("revoked")))

    def drain(self, timeout_s: float) -> None:
        """Take no more jobs, wait for those in hand, and give back what is not finished in time."""
        self._intake.stop()
        end = time.monotonic() + timeout_s
        while self._jobs and self._thread.is_alive() and time.monotonic() < end:
            time.sleep(TICK_S)
        released = threading.Event()
        self._put(_Release(released))
        released.wait(TICK_S * 50)

    def stop(self) -> None:
        """End engine and desk."""
        self._stopping.set()
        self._engine.stop()
        self._thread.join()
        self._upkeep.close()

    def _put(self, mail: _Mail) -> None:
        self._mail.put(mail)

    def _begin(self, generation: Generation, done: Done) -> None:
        self._put(_Job(generation, done))

    # Everything below runs on the desk's thread.

    def _run(self) -> None:
        while not self._stopping.is_set():
            touched: dict[str, _Job] = {}
            for mail in self._collect():
                touched.update((job.generation.job_id, job) for job in self._handle(mail))
            self._write(list(touched.values()))
            self._keep_up()

    def _collect(self) -> Iterable[_Mail]:
        try:
            yield self._mail.get(timeout=TICK_S)
            for _ in range(MAX_MAIL):
                yield self._mail.get_nowait()
        except Empty:
            return

    def _handle(self, mail: _Mail) -> list[_Job]:
        """Act on one mail; returns the jobs that may have new events."""
        match mail:
            case contract.Outputs(outputs=outputs):
                return self._take(outputs)
            case _Job():
                return self._start_job(mail)
            case Verdict(job_id=job_id, error=error):
                return self._end_job(job_id, error)
            case contract.Ready():
                return self._engine_ready(mail)
            case _EngineExit(code=code):
                return self._engine_exited(code)
            case contract.Load():
                self._observer.load_progress(mail)
                self._announce_loading(mail.percent)
            case contract.Fatal(code=code, message=message):
                self._fatal = BY_CODE.get(code, OrcdError)(message)
                if self._limits is not None:  # of the first start `wait_until_loaded` tells
                    self._observer.error(self._fatal)
            case contract.Stats():
                self._observer.stats(mail)
            case _Release():
                self._release(mail)
        return []

    def _take(self, outputs: Iterable[contract.TokenOutput]) -> list[_Job]:
        touched = []
        for output in outputs:
            job = self._jobs.get(output.request_id)
            if job is None:
                continue
            abort = job.generation.take(output)
            if abort is not None:
                self._engine.send(abort)
            touched.append(job)
        return touched

    def _start_job(self, job: _Job) -> list[_Job]:
        generation = job.generation
        self._jobs[generation.job_id] = job
        self._observer.execute_start(generation)
        if self._engine_up:
            self._submit(generation)
        return [job]

    def _submit(self, generation: Generation) -> None:
        add = generation.add()
        if add is not None:
            self._engine.send(add)

    def _end_job(self, job_id: str, error: OrcdError | None) -> list[_Job]:
        job = self._jobs.get(job_id)
        if job is None:
            return []
        self._engine.send(contract.Abort(job_id))
        if error is None:
            self._forget(job)
            return []
        job.generation.fail(error)
        return [job]

    def _forget(self, job: _Job) -> None:
        del self._jobs[job.generation.job_id]
        job.done(None)

    def _engine_ready(self, ready: contract.Ready) -> list[_Job]:
        self._engine_up, self._failed_starts, self._limits = True, 0, ready
        self._observer.ready(ready)
        self._loaded.set()
        for job in self._jobs.values():
            self._submit(job.generation)
        return list(self._jobs.values())

    def _engine_exited(self, code: int) -> list[_Job]:
        self._engine_up = False
        if self._stopping.is_set():
            return []
        if self._limits is None:
            self._fatal = self._fatal or EngineLost(f"the engine ended with {code} while it loaded the model")
            self._loaded.set()
            return []
        self._observer.engine_exited(code)
        self._failed_starts += 1
        if self._failed_starts > MAX_FAILED_STARTS:
            self._on_engine_lost()
            return []
        for job in self._jobs.values():
            generation = job.generation
            generation.num_engine_losses += 1
            if generation.claim.attempt + generation.num_engine_losses > self._settings.max_attempts:
                generation.fail(Poisoned("given up: the engine died too many times while it ran this job"))
        if self._failed_starts > 1:
            self._stopping.wait(2.0 ** (self._failed_starts - 2))
        self._engine.restart()
        return list(self._jobs.values())

    def _release(self, mail: _Release) -> None:
        """Hand unfinished jobs to whoever claims them next; they go on from the last logged token."""
        try:
            for message in self._store.release(
                {job_id: job.generation.claim.epoch for job_id, job in self._jobs.items()}
            ):
                self._publish(message)
        except Exception as error:  # Redis or the broker is away: the leases run out and a reaper takes the jobs
            self._observer.trouble("release", error)
        for job in list(self._jobs.values()):
            self._forget(job)
        mail.released.set()

    def _write(self, jobs: list[_Job]) -> None:
        """Append what the jobs have to say, until none has anything left."""
        while jobs:
            appends = [job.generation.take_append() for job in jobs]
            answers = self._append([append for append in appends if append.events])
            again = []
            for job, append in zip(jobs, appends, strict=True):
                answer = answers.get(append.job_id)
                if answer is not None and self._settle(job, answer):
                    again.append(job)
            jobs = again

    def _settle(self, job: _Job, answer: Appended) -> bool:
        """Act on what an append found; True if the job has more to say."""
        generation = job.generation
        if not answer.owned:
            self._engine.send(contract.Abort(generation.job_id))
            self._forget(job)
            return False
        if answer.num_listeners:
            generation.last_listened = time.monotonic()
        if generation.ended:
            del self._jobs[generation.job_id]
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
        silent_s = time.monotonic() - self._engine.last_heard
        if self._engine_up and self._jobs and silent_s > self._settings.engine_step_timeout_s:
            self._observer.engine_hung(silent_s)
            self._engine.kill()
        try:
            generations = [job.generation for job in self._jobs.values()]
            for verdict in self._upkeep.run(generations, self._observer.gauges(len(generations))):
                self._write(self._end_job(verdict.job_id, verdict.error))
        except Exception as error:  # Redis or the broker is away: the chores come up again
            self._observer.trouble("upkeep", error)

    def _announce_loading(self, percent: int) -> None:
        try:
            self._store.announce_loading(percent)
        except redis.RedisError as error:
            self._observer.trouble("loading", error)
