"""One batch on a thread of its own: its lines run, its files are written."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from orcd.batch.batch_file import BatchFile, BatchPaths
from orcd.batch.batch_options import BatchOptions
from orcd.batch.batch_run import BatchRun
from orcd.batch.formats.defaults import Defaults
from orcd.batch.journal import Journal
from orcd.batch.results.result_file import FileUnavailable, OutputInUse
from orcd.client import Client
from orcd.errors import InvalidRequest
from orcd.gateway.api_keys import TENANT_IS_KEY
from orcd.gateway.batches.batch_store import BatchRecord, RequestCounts
from orcd.gateway.batches.file_store import FileStore, data_name
from orcd.gateway.batches.shared_folder import Workplace
from orcd.gateway.settings import GatewaySettings
from orcd.openai.usage import response_usage

PRIORITY = 8
"""Of the lines' jobs, where they say nothing else: whoever waits for one answer goes first."""
KEEP_S = 5.0
"""Least time between two copies of files that still grow, where they are at a URL."""
MOST_ERRORS = 100
"""Lines that a batch which failed names, at most."""


class Stopped(Exception):
    """The batch is given back before its end, for another gateway to go on."""


class BatchTask:
    """Runs a batch's lines from where an earlier run stopped. What is public may be used from other threads.

    ``batch`` is how far it has come; a new value is put there, it is never changed.
    """

    def __init__(self, settings: GatewaySettings, files: FileStore, record: BatchRecord) -> None:
        self.batch = record.batch
        self._settings = settings
        self._files = files
        self._tag = record.tag
        self._models = record.models
        self._stopping = threading.Event()
        self._place: Workplace
        self._next_keep = 0.0
        self._is_cancelled = record.is_cancelled

    def stop(self) -> None:
        """Have `run` raise `Stopped` soon."""
        self._stopping.set()

    def cancel(self) -> None:
        """Have the batch cancelled."""
        if not self._is_cancelled:
            self._is_cancelled = True
            self._change(status="cancelling", cancelling_at=_now())

    def run(self) -> None:
        """Run the batch to its end; `batch` says which.

        Raises `Stopped`, `RedisUnavailable`, `FileUnavailable`, and as `FileStore` does.
        """
        with self._files.workplace() as self._place:
            self._run_here()

    def _run_here(self) -> None:
        batch = self.batch
        assert batch.output_file_id is not None
        assert batch.error_file_id is not None
        source, output, failures = map(data_name, (batch.input_file_id, batch.output_file_id, batch.error_file_id))
        self._place.fetch(source)
        errors = list(self._refused_lines())
        if errors:
            self._fail(errors)
            return
        journal = Journal.path_for(Path(output)).name
        for name in (output, journal):
            self._place.fetch(name)
        paths = BatchPaths([self._path(source)], self._path(output), self._path(failures))
        defaults = Defaults({"priority": PRIORITY, "tenant": self._tag or None})
        options = BatchOptions(format="openai", defaults=defaults)
        with Client(self._settings.redis_url, job_ttl_s=self._settings.job_ttl_s) as client:
            try:
                with BatchFile(paths, options, retries_failures=False) as file:
                    self._place.keep(journal)  # names the jobs: whoever goes on must find it
                    status = self._run(client, file)
            except OutputInUse:  # whoever had the batch before has only been slow, and will hear that it is ours
                raise Stopped from None
            except FileUnavailable:  # the file is as good as before: another try may find room, or the disk
                raise
            except InvalidRequest as error:
                self._fail([_error(None, error.message)])
                return
        self._finish(status)

    def update(self, num_done: int, num_failed: int, num_tokens: int) -> None:  # noqa: ARG002 - `Progress` has it
        """What `BatchRun` tells. Raises `Stopped` to have it stop."""
        counts = msgspec.structs.replace(self.batch.request_counts, completed=num_done - num_failed, failed=num_failed)
        self._change(request_counts=counts)
        self._keep_parts()
        if self._stopping.is_set() or self._is_cancelled or self.batch.expires_at <= _now():
            raise Stopped

    def _run(self, client: Client, file: BatchFile) -> str:
        """Run the lines to their end; gives the status that the batch then has. Raises as `run` does."""
        for file_id in (self.batch.output_file_id, self.batch.error_file_id):
            assert file_id is not None
            self._place.path(data_name(file_id)).touch()
            self._place.keep_part(data_name(file_id))
        self._describe_files(None)
        total = RequestCounts(total=file.num_lines, completed=file.num_done)
        self._change(request_counts=total, in_progress_at=self.batch.in_progress_at or _now())
        if not self._is_cancelled:
            self._change(status="in_progress")
        run = BatchRun(client, file, self)
        status = "completed"
        try:
            run.run()
        except Stopped:
            if self._stopping.is_set():
                self._keep_parts(is_last=True)
                raise
            run.cancel()
            status = "cancelled" if self._is_cancelled else "expired"
        self._change(status="finalizing", finalizing_at=_now())
        return status

    def _keep_parts(self, *, is_last: bool = False) -> None:
        """Let others read what the files have by now: seldom, if that takes long."""
        began = time.monotonic()
        if began < self._next_keep and not is_last:
            return
        for file_id in (self.batch.output_file_id, self.batch.error_file_id):
            assert file_id is not None
            self._place.keep_part(data_name(file_id))
        ended = time.monotonic()
        self._next_keep = ended + max(KEEP_S, 20 * (ended - began))

    def _finish(self, status: str) -> None:
        usage = self._usage()
        self._forget_empty_files()
        for file_id in (self.batch.output_file_id, self.batch.error_file_id):
            if file_id is not None:
                self._place.keep(data_name(file_id))
        if self.batch.output_expires_after is not None:  # while they were written they could not expire
            self._describe_files(self.batch.output_expires_after.seconds)
        self._change(status=status, usage=usage, **{f"{status}_at": _now()})

    def _describe_files(self, life_s: int | None) -> None:
        for file_id, kind in ((self.batch.output_file_id, "output"), (self.batch.error_file_id, "error")):
            if file_id is not None:
                name = f"{self.batch.id}_{kind}.jsonl"
                self._files.describe(self._place, file_id, filename=name, purpose="batch_output", life_s=life_s)

    def _forget_empty_files(self) -> None:
        """A batch that has ended names no file in which nothing is: a run removes an error file without errors."""
        for name in ("output_file_id", "error_file_id"):
            file_id = getattr(self.batch, name)
            if not self._place.path(data_name(file_id)).exists():
                self._files.delete(file_id)
                self._change(**{name: None})

    def _refused_lines(self) -> Iterator[dict[str, Any]]:
        """The lines that are for another endpoint, another tenant, or a model that the key of the batch may not use."""
        num_errors = 0
        with self._place.path(data_name(self.batch.input_file_id)).open("rb") as lines:
            for number, text in enumerate(lines, 1):
                error = self._refusal(text)
                if error is not None:
                    yield _error(number, error)
                    num_errors += 1
                if num_errors == MOST_ERRORS:
                    return

    def _refusal(self, text: bytes) -> str | None:
        try:
            line = _line.decode(text.removeprefix(b"\xef\xbb\xbf"))
        except (msgspec.MsgspecError, UnicodeDecodeError):  # that is the line's own error, later
            return None
        if line.url != self.batch.endpoint:
            return f"url: must be the batch's endpoint, {self.batch.endpoint}"
        if self._models is not None and line.body.model not in self._models:
            return "body.model: this key may not use it"
        if self._tag and line.body.tenant is not None:
            return f"body.{TENANT_IS_KEY}"
        return None

    def _usage(self) -> dict[str, Any]:
        """The tokens of all results."""
        assert self.batch.output_file_id is not None
        tokens_in = tokens_out = cached_tokens = 0
        with self._place.path(data_name(self.batch.output_file_id)).open("rb") as lines:
            for line in lines:
                usage = _result.decode(line).response.body.usage
                tokens_in += usage.get("prompt_tokens", usage.get("input_tokens", 0))
                tokens_out += usage.get("completion_tokens", usage.get("output_tokens", 0))
                details = usage.get("prompt_tokens_details", usage.get("input_tokens_details", {}))
                cached_tokens += details.get("cached_tokens", 0)
        return response_usage(tokens_in, tokens_out, cached_tokens)

    def _path(self, name: str) -> str:
        return str(self._place.path(name))

    def _fail(self, errors: list[dict[str, Any]]) -> None:
        self._forget_empty_files()
        self._change(status="failed", failed_at=_now(), errors={"object": "list", "data": errors})

    def _change(self, **changes: Any) -> None:
        self.batch = msgspec.structs.replace(self.batch, **changes)


class _Body(msgspec.Struct):
    model: str | None = None
    tenant: Any = None


class _Line(msgspec.Struct):
    url: str
    body: _Body


class _ResultBody(msgspec.Struct):
    usage: dict[str, Any]


class _Response(msgspec.Struct):
    body: _ResultBody


class _Result(msgspec.Struct):
    response: _Response


_line = msgspec.json.Decoder(_Line)
_result = msgspec.json.Decoder(_Result)


def _error(line: int | None, message: str) -> dict[str, Any]:
    param = message.partition(":")[0] if ":" in message else None
    return {"code": "invalid_request", "line": line, "message": message, "param": param}


def _now() -> int:
    return int(time.time())
