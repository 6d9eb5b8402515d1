"""Runs batches: takes over those that nobody runs, and keeps them for as long as this gateway lives.

A batch is a prompt file (`orcd.batch`): whoever goes on with it finds its lines' jobs and results again, so a gateway
may die at any moment.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import redis

from orcd.batch.results.result_file import FileUnavailable
from orcd.errors import LogDamaged, RedisUnavailable, places
from orcd.gateway.api_keys import new_id
from orcd.gateway.batches import file_store
from orcd.gateway.batches.batch_store import BatchObject, BatchRecord, BatchStore
from orcd.gateway.batches.batch_task import BatchTask, Stopped
from orcd.gateway.batches.file_store import FileStore
from orcd.gateway.batches.shared_folder import reason
from orcd.gateway.settings import GatewaySettings

log = logging.getLogger("orcd.gateway")

LOOK_S = 2.0
"""Time between two renewals of what is ours, and two looks for what nobody runs."""
MAX_BATCHES = 4
"""Batches that one gateway runs at a time."""
TURN_S = 300.0
"""How long a batch keeps its place where another waits for one: its lines may wait for a worker that never comes."""
OVERDUE_S = 60
"""How long after its window a batch is left to gateways that can read its input."""
STOP_S = 10.0
SWEEP_S = 3600.0
"""Time between two looks for files that have expired."""


@dataclass(frozen=True, slots=True)
class _Running:
    """A batch of ours, and the thread that runs it."""

    token: str
    task: BatchTask
    thread: asyncio.Task[None]
    began: float


class BatchRunner:
    """Runs batches until it is stopped; ``files`` has their files."""

    def __init__(self, settings: GatewaySettings, store: BatchStore, files: FileStore) -> None:
        self._settings = settings
        self._store = store
        self._files = files
        self._running: dict[str, _Running] = {}
        self._complaints: dict[str, str] = {}

    async def run(self) -> None:
        """Runs until it is cancelled, and gives back what it has then."""
        sweeping = asyncio.create_task(self._sweep())
        try:
            while True:
                try:
                    await self._keep()
                    await self._adopt()
                except redis.RedisError:
                    pass  # it comes back, or our leases run out and others go on
                except Exception as error:  # batches are run for as long as the gateway answers
                    log.error("batches: %s at %s; they are tried again", _what(error), _where(error))
                await asyncio.sleep(LOOK_S)
        finally:
            sweeping.cancel()
            await self._give_back()

    async def _sweep(self) -> None:
        """Delete files that have expired. There may be so many that our batches' leases would run out meanwhile."""
        while True:
            try:
                for file_id in await asyncio.to_thread(self._files.expiring):
                    await asyncio.to_thread(self._files.delete_if_over, file_id)
            except Exception as error:
                log.error("files that have expired: %s at %s; they are looked for again", _what(error), _where(error))
            await asyncio.sleep(SWEEP_S)

    async def _adopt(self) -> None:
        for batch_id in await self._store.waiting():
            try:
                waiting = await self._store.peek(batch_id)
                if waiting is None:
                    await self._store.drop(batch_id)
                elif batch_id in self._running:
                    continue
                elif not await asyncio.to_thread(self._files.is_readable, waiting.batch.input_file_id):
                    await self._end_if_over(waiting)
                elif self._has_room():
                    await self._run_if_free(batch_id)
                else:
                    return
            except LogDamaged as error:
                await self._store.drop(batch_id)
                log.error("%s", error.message)

    async def _run_if_free(self, batch_id: str) -> None:
        token = secrets.token_hex(16)
        record = await self._store.adopt(batch_id, token)
        if record is None:
            return
        task = BatchTask(self._settings, self._files, _with_files(record))
        if await self._store.save(task.batch, token):  # whoever goes on must find the same files
            thread = asyncio.create_task(asyncio.to_thread(task.run))
            self._running[batch_id] = _Running(token, task, thread, time.monotonic())

    async def _end_if_over(self, waiting: BatchRecord) -> None:
        """Of a batch whose input cannot be read here: it is left to others, unless there is nothing left to do."""
        batch_id, token = waiting.batch.id, secrets.token_hex(16)
        if _end_of_unread(waiting) is None:
            self._complain(
                batch_id, "its input file cannot be read in this gateway's --files-dir; another has to run it"
            )
        elif (record := await self._store.adopt(batch_id, token)) is not None:
            batch = _end_of_unread(record)  # somebody may have begun it since
            await self._store.save(batch or record.batch, token, ended=batch is not None, returned=batch is None)

    def _has_room(self) -> bool:
        """Whether another batch may begin; else the one that has run for longest makes room once its turn is over."""
        if len(self._running) < MAX_BATCHES:
            return True
        longest = min(self._running.values(), key=lambda running: running.began, default=None)
        if longest is not None and time.monotonic() - longest.began >= TURN_S:
            longest.task.stop()
        return False

    async def _keep(self) -> None:
        """Write down how far each of our batches has come."""
        for batch_id, running in list(self._running.items()):
            ended = running.thread.done()
            returned = ended and self._was_interrupted(running)
            answer = await self._store.save(
                running.task.batch, running.token, ended=ended and not returned, returned=returned
            )
            if ended:
                del self._running[batch_id]
                if not returned:
                    self._complaints.pop(batch_id, None)
            elif answer == 0:
                running.task.stop()
            elif answer == 2:
                running.task.cancel()

    def _was_interrupted(self, running: _Running) -> bool:
        """Whether a thread has ended before its batch, which is then somebody's to go on with."""
        error = running.thread.exception()
        if error is not None and not isinstance(error, Stopped | RedisUnavailable):
            self._complain(running.task.batch.id, f"{_what(error)} at {_where(error)}; it is tried again")
        return error is not None

    def _complain(self, batch_id: str, text: str) -> None:
        """Log it, but not the same thing of a batch at every look."""
        if self._complaints.get(batch_id) != text:
            self._complaints[batch_id] = text
            log.error("batch %s: %s", batch_id, text)

    async def _give_back(self) -> None:
        for running in self._running.values():
            running.task.stop()
        threads = [running.thread for running in self._running.values()]
        if threads:
            await asyncio.wait(threads, timeout=STOP_S)
            with suppress(redis.RedisError):
                await self._keep()


def _what(error: BaseException) -> str:
    """An error without its text, which may hold a prompt, but for what is wrong with the files."""
    return error.message if isinstance(error, FileUnavailable) else reason(error)


def _where(error: BaseException) -> str:
    return " ".join(places(error)[-5:])


def _end_of_unread(record: BatchRecord) -> BatchObject | None:
    """How a batch ends whose input file cannot be read here; None if a gateway that can read it may go on with it."""
    now = int(time.time())
    if record.is_cancelled and record.batch.output_file_id is None:  # nobody has begun it: there are no jobs
        return msgspec.structs.replace(record.batch, status="cancelled", cancelled_at=now)
    if now >= record.batch.expires_at + OVERDUE_S:
        return msgspec.structs.replace(record.batch, status="expired", expired_at=now)
    return None


def _with_files(record: BatchRecord) -> BatchRecord:
    """The record with ids for the files that the batch will write."""
    if record.batch.output_file_id is not None:
        return record
    output, errors = (new_id(file_store.KIND, record.tag) for _ in range(2))
    batch = msgspec.structs.replace(record.batch, output_file_id=output, error_file_id=errors)
    return msgspec.structs.replace(record, batch=batch)
