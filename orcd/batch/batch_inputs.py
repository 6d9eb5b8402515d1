"""The inputs of a batch: their requests in order, each with its place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

from orcd.batch.batch_options import BatchOptions
from orcd.batch.formats.line_format import CallerId, FormatName, LineFormat, ParsedRecord, Record
from orcd.batch.place import Place
from orcd.batch.prompt_file import STDIN, PromptFile
from orcd.batch.repeated_ids import CallerIds, FirstPlaces
from orcd.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Entry:
    """A record of an input; ``earlier`` is the place of the one that has its id already, None if it is the first."""

    place: Place
    record: Record
    earlier: Place | None


class BatchInputs:
    """All inputs of a batch; pipes are copied to files beside ``base``.

    Raises `InvalidRequest` naming the file that cannot be used.
    """

    def __init__(self, names: Sequence[str], base: Path, options: BatchOptions) -> None:
        if names.count(STDIN) > 1:
            raise InvalidRequest("standard input (-) can be one INPUT only")
        self._files = [
            PromptFile(name, base.with_name(f"{base.name}.input{number}")) for number, name in enumerate(names, 1)
        ]
        self._options = options
        self.num_lines = 0
        self.last_numbers = [0] * len(names)
        """The number of the last line of each input that is not empty."""

    def open(self) -> None:
        """Copy pipes, find out the formats, and read everything once."""
        for file in self._files:
            file.copy_pipe()
        self.formats = [_format_name(file, self._options) for file in self._files]
        self._parsers: list[LineFormat] = [self._options.line_format(name) for name in self.formats]
        self._repeated_ids = self._read_all()

    @property
    def paths(self) -> list[str]:
        """Where the inputs, or the copies of pipes, are."""
        return [str(file.path.absolute()) for file in self._files]

    def entries(self) -> Iterator[Entry]:
        """Every record, in order. Lines that came after the inputs were opened are left out."""
        first_places = FirstPlaces(self._repeated_ids)
        for place, record in self._records():
            if place.number > self.last_numbers[place.file]:
                continue
            caller_id = self._parsers[place.file].caller_id(record) if self._repeated_ids else None
            yield Entry(place, record, None if caller_id is None else first_places.earlier(caller_id, place))

    def parse(self, entry: Entry) -> ParsedRecord:
        """The request of an entry. Raises `InvalidRequest` naming the field."""
        if entry.earlier is not None:
            raise InvalidRequest(f"custom_id: {self.describe(entry.earlier)} has the same one; give each line its own")
        return self._parsers[entry.place.file].parse(entry.record)

    def caller_id(self, entry: Entry) -> CallerId:
        """The caller's name for an entry, also for one that is broken, if it can be made out."""
        return self._parsers[entry.place.file].caller_id(entry.record)

    def file_name(self, place: Place) -> str | None:
        """Which file a place is in; None if there is one only."""
        return self._files[place.file].name if len(self._files) > 1 else None

    def describe(self, place: Place) -> str:
        """A place for people."""
        file = self.file_name(place)
        return f"line {place.number}" + (f" of {file}" if file else "")

    def remove_copies(self) -> None:
        """Remove the copies of pipes."""
        for file in self._files:
            file.remove_copy()

    def _read_all(self) -> Set[int]:
        """Count the lines, and find the ids that come more than once."""
        ids = CallerIds()
        for place, record in self._records():
            self.num_lines += 1
            self.last_numbers[place.file] = place.number
            if (caller_id := self._parsers[place.file].caller_id(record)) is not None:
                ids.add(caller_id)
        return ids.repeated()

    def _records(self) -> Iterator[tuple[Place, Record]]:
        for number, (file, parser) in enumerate(zip(self._files, self._parsers, strict=True)):
            for record in file.records(parser):
                yield Place(number, record.number), record


def _format_name(file: PromptFile, options: BatchOptions) -> FormatName:
    if options.format != "auto":
        return options.format
    return file.detect_format(has_template=options.prompt is not None)
