"""Runs batches: takes over those that nobody runs, and keeps them for as long as this gateway lives.

A batch is a prompt file (`orcd.batch`): whoever goes on with it finds its lines' jobs and results again, so a gateway
may die at any moment.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import suppress
from dataclasses import dataclass

import msgspec
import redis

from orcd.errors import LogDamaged, RedisUnavailable, places
from orcd.gateway.api_keys import new_id
from orcd.gateway.batches import file_store
from orcd.gateway.batches.batch_store import BatchObject, BatchRecord, BatchStore
from orcd.gateway.batches.batch_task import BatchTask, Stopped
from orcd.gateway.batches.file_store import FileStore
from orcd.gateway.settings import GatewaySettings

log = logging.getLogger("orcd.gateway")

LOOK_S = 2.0
"""Time between two renewals of what is ours, and two looks for what nobody runs."""
MAX_BATCHES = 4
"""Batches that one gateway runs at a time."""
STOP_S = 10.0


@dataclass(frozen=True, slots=True)
class _Running:
    """A batch of ours, and the thread that runs it."""

    token: str
    task: BatchTask
    thread: asyncio.Task[None]


class BatchRunner:
    """Runs batches until it is stopped; ``files`` has their files."""

    def __init__(self, settings: GatewaySettings, store: BatchStore, files: FileStore) -> None:
        self._settings = settings
        self._store = store
        self._files = files
        self._running: dict[str, _Running] = {}
        self._unreadable: set[str] = set()

    async def run(self) -> None:
        """Runs until it is cancelled, and gives back what it has then."""
        try:
            while True:
                try:
                    await self._keep()
                    await self._adopt()
                except redis.RedisError:
                    pass  # it comes back, or our leases run out and others go on
                except Exception as error:  # batches are run for as long as the gateway answers
                    log.error("batches: %s at %s; they are tried again", type(error).__name__, _where(error))
                await asyncio.sleep(LOOK_S)
        finally:
            await self._give_back()

    async def _adopt(self) -> None:
        for batch_id in await self._store.waiting():
            if len(self._running) >= MAX_BATCHES:
                return
            try:
                await self._run_if_free(batch_id)
            except LogDamaged as error:
                await self._store.drop(batch_id)
                log.error("%s", error.message)

    async def _run_if_free(self, batch_id: str) -> None:
        waiting = await self._store.peek(batch_id)
        if waiting is None:
            await self._store.drop(batch_id)
        if waiting is None or batch_id in self._running or not await self._is_readable(waiting.batch):
            return
        token = secrets.token_hex(16)
        record = await self._store.adopt(batch_id, token)
        if record is None:
            return
        task = BatchTask(self._settings, self._files, _with_files(record))
        if await self._store.save(task.batch, token):  # whoever goes on must find the same files
            self._running[batch_id] = _Running(token, task, asyncio.create_task(asyncio.to_thread(task.run)))

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
            elif answer == 0:
                running.task.stop()
            elif answer == 2:
                running.task.cancel()

    def _was_interrupted(self, running: _Running) -> bool:
        """Whether a thread has ended before its batch, which is then somebody's to go on with."""
        error = running.thread.exception()
        if error is not None and not isinstance(error, Stopped | RedisUnavailable):
            batch_id, name = running.task.batch.id, type(error).__name__
            log.error("batch %s: %s at %s; it is tried again", batch_id, name, _where(error))
        return error is not None

    async def _give_back(self) -> None:
        for running in self._running.values():
            running.task.stop()
        threads = [running.thread for running in self._running.values()]
        if threads:
            await asyncio.wait(threads, timeout=STOP_S)
            with suppress(redis.RedisError):
                await self._keep()

    async def _is_readable(self, batch: BatchObject) -> bool:
        if await asyncio.to_thread(self._files.is_readable, batch.input_file_id):
            return True
        if batch.id not in self._unreadable:
            self._unreadable.add(batch.id)
            log.warning(
                "batch %s: its input file cannot be read in this gateway's --files-dir; another has to run it", batch.id
            )
        return False


def _where(error: BaseException) -> str:
    return " ".join(places(error)[-5:])


def _with_files(record: BatchRecord) -> BatchRecord:
    """The record with ids for the files that the batch will write."""
    if record.batch.output_file_id is not None:
        return record
    output, errors = (new_id(file_store.KIND, record.tag) for _ in range(2))
    batch = msgspec.structs.replace(record.batch, output_file_id=output, error_file_id=errors)
    return msgspec.structs.replace(record, batch=batch)
