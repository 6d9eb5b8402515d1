"""``OUTPUT.resume``: what a batch must know to go on, to be tried again and to be cancelled.

Line 1 is the batch's name, from which job ids are made; line 2 the command, as JSON. Each further line is something
that happened: ``+12-3fb2a9c01d5e`` the job of line 12, whose digest follows, was submitted; ``-12`` it failed. In the
second input line 12 is ``2.12``.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import msgspec

from orcd.batch.batch_options import BatchOptions
from orcd.batch.formats.line_format import FormatName
from orcd.batch.line_index import LineIndex
from orcd.batch.place import DIGEST_BYTES, Place
from orcd.batch.results.result_file import FileUnavailable
from orcd.errors import InvalidRequest, is_unicode, printable


class BatchCommand(msgspec.Struct, frozen=True, omit_defaults=True):
    """The command that made an OUTPUT, so that it can be run again. Paths are absolute; a pipe's is that of its copy.

    ``formats`` are those of the inputs, and ``num_lines`` is how many lines each of them has. ``errors`` None is the
    error file that an OUTPUT has where no other is named.
    """

    inputs: list[str]
    formats: list[FormatName]
    errors: str | None
    options: BatchOptions
    num_lines: list[int]


class Journal:
    """The file of one batch. Survives the death of the process at any point; the last entry may then be torn."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self.name = ""
        self.in_flight: dict[Place, int] = {}

    @classmethod
    def path_for(cls, output: Path) -> Path:
        """Where the journal of an OUTPUT is."""
        return output.with_name(output.name + ".resume")

    @classmethod
    def command(cls, output: Path) -> BatchCommand:
        """The command that made an OUTPUT. Raises `InvalidRequest` if it has finished without a failure."""
        path = cls.path_for(output)
        try:
            with path.open("rb") as file:
                file.readline()
                return _commands.decode(file.readline())
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError):
            raise InvalidRequest(
                f"{output}: nothing in it is unfinished or failed ({path.name} is missing or cannot be read); "
                "to run a batch give INPUT and OUTPUT"
            ) from None

    def read(self, index: LineIndex) -> None:
        """Find the name, what has failed (told to ``index``) and what is `in_flight`, with digests.

        Lines that ``index`` knows to be done are left out, as is what cannot be read.
        """
        with suppress(OSError), self._path.open("rb") as file:
            self.name = file.readline(200).decode("ascii", "replace").strip()
            file.readline()
            for entry in file:
                with suppress(ValueError, IndexError):
                    self._apply(entry.decode("ascii").rstrip("\n"), index)

    def open(self, command: BatchCommand, failures: Iterable[tuple[Place, int]] = ()) -> None:
        """Begin to write: the file is made anew, with what is known so far. Raises `InvalidRequest` if it cannot be."""
        for each in filter(None, (*command.inputs, command.errors)):
            if not is_unicode(each):
                raise InvalidRequest(f"{printable(each)}: its path must be valid UTF-8; rename it")
        self.name = self.name or f"batch-{secrets.token_hex(6)}"
        new = self._path.with_name(self._path.name + ".part")
        try:
            with new.open("wb") as file:
                file.write(f"{self.name}\n".encode() + msgspec.json.encode(command) + b"\n")
                file.writelines(f"-{place}\n".encode() for place, times in failures for _ in range(times))
                file.write(_submitted(self.in_flight))
            new.replace(self._path)
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise FileUnavailable(f"{self._path}: cannot be written ({error.strerror})") from None

    def submit(self, digests: Mapping[Place, int]) -> None:
        """Jobs are about to be submitted."""
        self._write(_submitted(digests))

    def fail(self, place: Place) -> None:
        """A line's job has failed or was cancelled: the next one is another job."""
        self._write(f"-{place}\n".encode())

    def remove(self) -> None:
        """The batch is over and has no more need of the file."""
        self._path.unlink(missing_ok=True)

    def close(self) -> None:
        """Stop writing."""
        if self._file is not None:
            self._file.close()

    def _write(self, entries: bytes) -> None:
        assert self._file is not None
        while entries:  # a disk that is all but full takes a part of them, and says so only when it is asked again
            entries = entries[self._file.write(entries) :]

    def _apply(self, entry: str, index: LineIndex) -> None:
        kind, (place_text, _, digest) = entry[:1], entry[1:].partition("-")
        place = Place.parse(place_text)
        if index.digest(place) is not None:
            return
        if kind == "-":
            index.fail(place)
            self.in_flight.pop(place, None)
        elif kind == "+" and len(digest) == 2 * DIGEST_BYTES:
            self.in_flight[place] = int(digest, 16)


def _submitted(digests: Mapping[Place, int]) -> bytes:
    return "".join(f"+{place}-{digest:0{2 * DIGEST_BYTES}x}\n" for place, digest in digests.items()).encode()


_commands = msgspec.json.Decoder(BatchCommand)
