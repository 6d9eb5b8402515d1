"""Which of a worker's jobs are in its engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from orcd.errors import Poisoned
from tasks.dispatch.active_job import ActiveJob
from tasks.dispatch.engine.engine_process import EngineExit
from tasks.dispatch.engine.engine_supervisor import EngineSupervisor
from tasks.dispatch.engine.isolation import Isolation
from tasks.dispatch.output_batcher import OutputBatcher
from tasks.observe.observer import Observer


class Admission:
    """Gives jobs to the engine: all of them, or, while one is looked for that kills it, those that `Isolation` admits.

    Belongs to the job runner's thread, but for `begin`.
    """

    def __init__(
        self,
        engine: EngineSupervisor,
        batcher: OutputBatcher,
        observer: Observer,
        put: Callable[[ActiveJob], None],
    ) -> None:
        """``put`` gets the jobs that begin."""
        self._put = put
        self._engine = engine
        self._batcher = batcher
        self._observer = observer
        self._isolation = Isolation()
        self._round = 0
        self._told = 0, 0

    def begin(self, job: ActiveJob) -> None:
        """Pass a job that was just claimed to the job runner, and send it to the engine at once; from any thread.

        So it need not wait for the job runner's turn. Where that has to judge, it sends the job itself: while no engine
        is up, or one job is looked for that kills it.
        """
        writer = self._engine.process.writer  # before the engine is looked at: `submit` finds out if another one came
        can_send = writer is not None and self._engine.is_up and not self._isolation.num_suspects
        if writer is None or not can_send or (add := job.add()) is None:
            self._put(job)
            return
        job.sent_by = writer
        writer.put(add, announce=lambda: self._put(job))

    def submit(self, job: ActiveJob) -> None:
        """Send a job to the engine, from its last token on, if it may be there now and is not on its way."""
        sent_by, job.sent_by = job.sent_by, None
        if not self._engine.is_up or not self._isolation.admits(job.job_id):
            return
        if sent_by is not None and self._engine.process.writer in (sent_by, None):  # None: its exit is on the way
            self._batcher.expect_first(job.request_id)
            job.is_in_engine = True
            return
        add = job.add()
        if add is not None:
            self._batcher.expect_first(add.request_id)
            job.is_in_engine = self._engine.process.send(add)

    def advanced(self, job: ActiveJob) -> None:
        """The engine has drawn tokens for the job."""
        if self._isolation.is_charged(job.job_id):
            self._isolation.advanced(job.job_id, job.place, time.monotonic())

    def left(self, job: ActiveJob) -> None:
        """The job has ended, or is somebody else's now."""
        self._isolation.left(job.job_id)

    def engine_died(self, exit: EngineExit, jobs: Collection[ActiveJob]) -> None:
        """The engine has died at work; a job that is guilty of it fails."""
        lost = {job.job_id: job for job in jobs if job.is_in_engine and not job.ended}
        in_flight = {job_id for job_id, job in lost.items() if job.request_id in exit.in_flight}
        places = {job_id: job.place for job_id, job in lost.items()}
        guilty = self._isolation.died(places, in_flight, is_fault=exit.is_fault)
        for job in jobs:
            job.is_in_engine = False
        if guilty is not None:
            lost[guilty].fail(Poisoned("given up: the engine died again and again while it ran nothing but this job"))
        self._tell()

    def update(self, jobs: Collection[ActiveJob]) -> list[ActiveJob]:
        """Have the right jobs in the engine, if other ones are admitted now; returns those that came or went."""
        if self._round == self._isolation.num_rounds or not self._engine.is_up:
            return []
        self._tell()
        self._round = self._isolation.num_rounds
        leaving = [job for job in jobs if job.is_in_engine and not self._isolation.admits(job.job_id)]
        coming = [job for job in jobs if not (job.is_in_engine or job.ended) and self._isolation.admits(job.job_id)]
        for job in leaving:  # first, so that those who come find the engine idle
            self._batcher.forget(job.request_id)
            self._engine.process.send(job.withdraw())
        for job in coming:
            self.submit(job)
        return leaving + coming

    def _tell(self) -> None:
        isolation = self._isolation
        if self._told != (told := (isolation.num_suspects, isolation.group_size)):
            self._told = told
            self._observer.isolates(*told)
