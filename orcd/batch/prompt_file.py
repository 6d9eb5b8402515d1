"""One INPUT of a batch: its lines, whether it is a file, a compressed file or a pipe."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from orcd.batch.formats.detection import detect
from orcd.batch.formats.line_format import FormatName, LineFormat, Record
from orcd.batch.results.result_file import FileUnavailable
from orcd.errors import InvalidRequest
from orcd.request import MAX_REQUEST_BYTES

STDIN = "-"
_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class PromptFile:
    """A file of prompts, which is read as often as one likes; ``name`` is what people call it.

    Standard input (``-``) and other pipes can be read once only: they are copied to the file ``copy`` first.
    Compressed with gzip or not is seen from the first bytes. Raises `InvalidRequest` if it cannot be read.
    """

    def __init__(self, name: str, copy: Path) -> None:
        self.name = name
        self._is_pipe = name == STDIN or not Path(name).is_file()
        self.path = copy if self._is_pipe else Path(name)
        self._copy = copy
        if name != STDIN and (not Path(name).exists() or Path(name).is_dir()):
            reason = os.strerror(errno.EISDIR if Path(name).is_dir() else errno.ENOENT)
            raise InvalidRequest(f"{name}: cannot be read ({reason})")

    def copy_pipe(self) -> None:
        """Copy a pipe to the end, all or nothing; any other file is left where it is."""
        if not self._is_pipe:
            return
        unfinished = self._copy.with_name(self._copy.name + ".part")
        try:
            with unfinished.open("wb") as copy, _open_pipe(self.name) as pipe:
                shutil.copyfileobj(pipe, copy, 1 << 20)
            unfinished.replace(self._copy)
        except OSError as error:
            raise InvalidRequest(f"{error.filename or self.name}: cannot be copied ({error.strerror})") from None
        finally:
            unfinished.unlink(missing_ok=True)

    def remove_copy(self) -> None:
        """Remove the copy of a pipe, this run's or that of the run that is gone on with."""
        if self.path == self._copy:
            self._copy.unlink(missing_ok=True)

    def detect_format(self, *, has_template: bool) -> FormatName:
        """See `orcd.batch.formats.detection.detect`."""
        with self._named():
            return detect(self.name, self._lines(), has_template=has_template)

    def records(self, format: LineFormat) -> Iterator[Record]:
        """The records of the file, from its first one on."""
        with self._named():
            yield from format.records(self._lines())

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Errors say which file they are of."""
        try:
            yield
        except FileUnavailable:
            raise
        except InvalidRequest as error:
            raise InvalidRequest(f"{self.name}: {error.message}") from None

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Number, from 1, and bytes of each line with its end. Of one longer than any request the rest is left out."""
        try:
            with self.path.open("rb") as file:
                is_compressed = file.read(len(_GZIP)) == _GZIP
                file.seek(0)
                text = gzip.GzipFile(fileobj=file, mode="rb") if is_compressed else file
                number = 0
                while line := text.readline(MAX_REQUEST_BYTES + 2):
                    number += 1
                    rest = line
                    while not rest.endswith(b"\n") and (rest := text.readline(MAX_REQUEST_BYTES)):
                        pass
                    yield number, line.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line
        except (EOFError, zlib.error):
            raise InvalidRequest("the gzip file is damaged or cut off") from None
        except gzip.BadGzipFile:
            raise InvalidRequest("cannot be read (the gzip file is damaged)") from None
        except OSError as error:
            raise FileUnavailable(f"{self.name}: cannot be read ({error.strerror})") from None


def _open_pipe(name: str) -> BinaryIO:
    return open(sys.stdin.fileno(), "rb", closefd=False) if name == STDIN else open(name, "rb")  # noqa: PTH123
