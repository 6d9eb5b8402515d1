"""OUTPUT and the error file: a line is written at once and whole, so that both can be read at any time."""

from __future__ import annotations

import fcntl
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import msgspec
from tqdm import tqdm

from orcd import jsonl
from orcd.batch.place import Place, place_and_digest
from orcd.batch.results.result_format import ResultFormat
from orcd.errors import InvalidRequest


class ResultSink(Protocol):
    """Where results or errors go."""

    def write(self, record: dict[str, Any]) -> None:
        """One line in one write, so that a crash leaves at most one torn line, at the end."""

    def sync(self) -> None:
        """What was written survives the machine's end from now on, where that is possible."""

    def close(self) -> None:
        """Nothing more comes."""


class FileUnavailable(InvalidRequest):
    """The machine cannot read or write a file of a batch now, as its disk is full; nothing is wrong with the batch."""


class OutputInUse(InvalidRequest):
    """Another process writes the OUTPUT."""


class ResultFile:
    """An OUTPUT that a batch can go on with; locked while it is open.

    Raises `InvalidRequest` if it cannot be written, and `OutputInUse` if somebody else writes it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open(path, "a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            raise OutputInUse(f"{path}: another batch is writing this file") from None

    def read(self, format: ResultFormat) -> Iterator[tuple[Place, int]]:
        """Place and digest of the input line of every result so far; a torn last line is cut off.

        Raises `InvalidRequest` if there is anything else in the file: it would not be ours to write to.
        """
        end = 0
        self._file.seek(0)
        for number, text in enumerate(self._file, 1):
            if not text.endswith(b"\n") and (text.startswith(format.START) or format.START.startswith(text)):
                self._file.truncate(end)
                return
            end += len(text)
            try:
                yield place_and_digest(format.job_id(text))
            except (msgspec.MsgspecError, ValueError):
                raise InvalidRequest(
                    f"{self._path}: line {number} is not a result of orcd batch in this format; choose another OUTPUT"
                ) from None

    def write(self, record: dict[str, Any]) -> None:
        """See `ResultSink`."""
        _write(self._file, record)

    def sync(self) -> None:
        """See `ResultSink`."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """See `ResultSink`."""
        self._file.close()


class ErrorFile:
    """The error file, made anew by each run and removed if nothing is in it. Raises `InvalidRequest`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = _open(path, "wb")

    def write(self, record: dict[str, Any]) -> None:
        """See `ResultSink`."""
        _write(self._file, record)

    def sync(self) -> None:
        """See `ResultSink`."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """See `ResultSink`."""
        is_empty = self._file.tell() == 0
        self._file.close()
        if is_empty:
            self._path.unlink(missing_ok=True)


class ResultStream:
    """Standard output or another pipe: what went there is out of reach, so no batch goes on from it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    @classmethod
    def open(cls, path: str) -> ResultStream:
        """``-`` is standard output."""
        return cls(sys.stdout.buffer if path == "-" else _open(Path(path), "wb"))

    def write(self, record: dict[str, Any]) -> None:
        """See `ResultSink`."""
        _write(self._file, record)

    def sync(self) -> None:
        """See `ResultSink`."""

    def close(self) -> None:
        """See `ResultSink`."""
        self._file.flush()


class ErrorStream:
    """Standard error, where a bar may be drawn, too."""

    def write(self, record: dict[str, Any]) -> None:
        """See `ResultSink`."""
        tqdm.write(jsonl.encode(record).decode(), file=sys.stderr, end="")
        sys.stderr.flush()

    def sync(self) -> None:
        """See `ResultSink`."""

    def close(self) -> None:
        """See `ResultSink`."""


def is_stream(output: str) -> bool:
    """Whether an OUTPUT is a pipe or a device, and no file that is there or will be made."""
    if output == "-":
        return True
    try:
        return not stat.S_ISREG(Path(output).stat().st_mode) and not Path(output).is_dir()
    except OSError:
        return False


def _open(path: Path, mode: str) -> BinaryIO:
    try:
        return cast(BinaryIO, path.open(mode))
    except OSError as error:
        raise FileUnavailable(f"{path}: cannot be written ({error.strerror})") from None


def _write(file: BinaryIO, record: dict[str, Any]) -> None:
    file.write(jsonl.encode(record))
    file.flush()
