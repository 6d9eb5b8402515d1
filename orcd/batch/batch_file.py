"""Prompt files: requests are read one by one; results are written so that an interrupted batch goes on later.

INPUT is JSONL (one request object a line, see `orcd.request`, with an optional ``id`` or ``custom_id`` that is carried
to the result) or, when its name ends in ``.txt``, one chat message a line. Empty lines are skipped. OUTPUT gets one
JSON object a line as jobs finish, in any order; ERRORS gets one for each line that cannot be read or whose job failed.

While a batch is unfinished ``OUTPUT.resume`` holds its name, from which the job ids are made: the same line of the same
batch is always the same job, so going on neither loses a job nor runs one twice. A line is done when OUTPUT holds its
result; a last line that was torn by a crash is cut off and fetched again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import msgspec

from orcd import jsonl
from orcd import request as requests
from orcd.errors import InvalidRequest, OrcdError
from orcd.request import MAX_REQUEST_BYTES

_RESULT_START = b'{"line":'


@dataclass(frozen=True, slots=True)
class Line:
    """A request of the file; ``number`` counts from 1 and ``id`` is the caller's own name for it.

    ``fields`` are the request's as they were given; they have been checked.
    """

    number: int
    id: str | int | None
    job_id: str
    fields: dict[str, Any]


class BatchFile:
    """A prompt file with its results and errors. Use as a context manager; holds a lock on OUTPUT meanwhile.

    Raises `InvalidRequest` when INPUT cannot be read or OUTPUT is not a result file of the same input.
    """

    def __init__(self, source: Path, output: Path, errors: Path) -> None:
        paths = {path.resolve() for path in (source, output, errors)}
        if len(paths) != 3:
            raise InvalidRequest("INPUT, OUTPUT and the error file must be three different files")
        self._source = source
        self._output_path = output
        self._errors_path = errors
        self._resume_path = output.with_name(output.name + ".resume")
        self._done: dict[int, str] = {}
        self.num_lines = 0
        self.num_succeeded = 0
        self.num_failed = 0

    @property
    def num_resumed(self) -> int:
        """Lines whose result was in OUTPUT already."""
        return len(self._done)

    @property
    def num_done(self) -> int:
        """Lines that need no more work: results of this and earlier runs, and errors."""
        return self.num_resumed + self.num_succeeded + self.num_failed

    def __enter__(self) -> BatchFile:
        self.num_lines = sum(1 for _ in self._lines())
        self._output = _open(self._output_path, "a+b")
        try:
            fcntl.flock(self._output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._output.close()
            raise InvalidRequest(f"{self._output_path}: another batch is writing this file") from None
        try:
            self._done = self._read_results()
            self._errors = _open(self._errors_path, "wb")
            self._name = self._batch_name()
        except BaseException:
            self._output.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            os.fsync(self._output.fileno())
            self._resume_path.unlink(missing_ok=True)
        is_empty = self._errors.tell() == 0
        self._errors.close()
        self._output.close()
        if is_empty:
            self._errors_path.unlink(missing_ok=True)

    def pending(self) -> Iterator[Line]:
        """The lines that have no result yet; what is wrong with broken ones goes to the error file.

        Raises `InvalidRequest` when a line is not the one that OUTPUT has a result for.
        """
        for number, text in self._lines():
            digest = hashlib.sha256(text).hexdigest()[:12]
            if number in self._done:
                if self._done[number] != digest:
                    raise InvalidRequest(
                        f"{self._source}: line {number} is not the one that {self._output_path} has a result for; "
                        "choose another OUTPUT"
                    )
                continue
            try:
                caller_id, fields = self._parse(text)
            except InvalidRequest as error:
                self.fail(number, error)
                continue
            yield Line(number, caller_id, f"{self._name}-{number}-{digest}", fields)

    def succeed(self, line: Line, result: dict[str, Any]) -> None:
        """Write a job's result."""
        _write(self._output, {"line": line.number, "id": line.id, "job_id": line.job_id, **result})
        self.num_succeeded += 1

    def fail(self, number: int, error: OrcdError, line: Line | None = None) -> None:
        """Write why a line has no result; ``line`` when it could be read."""
        known = {} if line is None else {"id": line.id, "job_id": line.job_id}
        _write(self._errors, {"line": number, **known, "code": error.code, "message": error.message})
        self.num_failed += 1

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Number and text of the lines that are not empty. One longer than any request is cut, and so breaks."""
        try:
            with self._source.open("rb") as file:
                number = 0
                while text := file.readline(MAX_REQUEST_BYTES + 2):
                    number += 1
                    rest = text
                    while not rest.endswith(b"\n") and (rest := file.readline(MAX_REQUEST_BYTES)):
                        pass
                    text = text.removeprefix(b"\xef\xbb\xbf") if number == 1 else text
                    if text := text.strip():
                        yield number, text
        except OSError as error:
            raise InvalidRequest(f"{self._source}: cannot be read ({error.strerror})") from None

    def _parse(self, text: bytes) -> tuple[str | int | None, dict[str, Any]]:
        if len(text) > MAX_REQUEST_BYTES:
            raise InvalidRequest(f"the line is longer than {MAX_REQUEST_BYTES} bytes")
        is_text = self._source.suffix == ".txt"
        try:
            fields = {"messages": [{"role": "user", "content": text.decode()}]} if is_text else _decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise InvalidRequest(f"the line is not valid {'text' if is_text else 'JSON'} in UTF-8") from None
        if not isinstance(fields, dict):
            raise InvalidRequest("the line must be an object of named fields")
        caller_ids = [fields.pop(name) for name in ("id", "custom_id") if name in fields]
        caller_id = caller_ids[0] if caller_ids else None
        if len(caller_ids) > 1 or not isinstance(caller_id, str | int | None) or isinstance(caller_id, bool):
            raise InvalidRequest("id: give one id (or custom_id), a string or a whole number")
        requests.encode(requests.parse(fields))
        return caller_id, fields

    def _read_results(self) -> dict[int, str]:
        """Digest of the input line by line number, for every result in OUTPUT; cuts off a torn last line."""
        done: dict[int, str] = {}
        end = 0
        self._output.seek(0)
        for place, text in enumerate(self._output, 1):
            if not text.endswith(b"\n") and (text.startswith(_RESULT_START) or _RESULT_START.startswith(text)):
                self._output.truncate(end)
                break
            end += len(text)
            try:
                result = _result_decoder.decode(text)
            except (msgspec.DecodeError, UnicodeDecodeError):
                raise InvalidRequest(
                    f"{self._output_path}: line {place} is not a result of orcd batch; choose another OUTPUT"
                ) from None
            done[result.line] = result.job_id.rpartition("-")[2]
        return done

    def _batch_name(self) -> str:
        """The unfinished batch's name, or a new one, on disk before any job has an id made from it."""
        try:
            name = self._resume_path.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            name = ""
        if not name:
            name = f"batch-{secrets.token_hex(6)}"
            with _open(self._resume_path, "wb") as file:
                file.write(name.encode() + b"\n")
        return name


class _Result(msgspec.Struct):
    line: int
    job_id: str


_result_decoder = msgspec.json.Decoder(_Result)
_decoder = msgspec.json.Decoder()


def _open(path: Path, mode: str) -> BinaryIO:
    try:
        return path.open(mode)  # type: ignore[return-value]  # mypy cannot see that every mode here is binary
    except OSError as error:
        raise InvalidRequest(f"{path}: cannot be written ({error.strerror})") from None


def _write(file: BinaryIO, record: dict[str, Any]) -> None:
    """One line in one write, so that a crash leaves at most one torn line, at the end."""
    file.write(jsonl.encode(record))
    file.flush()
