"""CSV: a row is a request, which a column ``prompt`` or a template over the columns makes; the first row names them.

A column ``custom_id`` or ``id`` names the rows. Fields are separated by the one of ``,``, ``;`` and tab that the first
row has most of; quotes as RFC 4180 has them, so that a quoted field may hold line ends.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import chain
from string import Formatter
from typing import ClassVar

from orcd.batch.formats.defaults import Defaults
from orcd.batch.formats.line_format import CallerId, FormatName, ParsedRecord, Record, check_length, parse_fields
from orcd.errors import InvalidRequest
from orcd.request import MAX_REQUEST_BYTES

_SEPARATORS = ",;\t"
_ID_COLUMNS = ("custom_id", "id")


class PromptTemplate:
    """Text with column names in braces, ``{{`` and ``}}`` for braces. Raises `InvalidRequest` if it is none."""

    def __init__(self, text: str) -> None:
        try:
            self._parts = list(Formatter().parse(text))
        except ValueError as error:
            raise InvalidRequest(f"--prompt: {error}; write {{{{ and }}}} for braces that are text") from None
        if any(spec or conversion or column == "" for _, column, spec, conversion in self._parts):
            raise InvalidRequest("--prompt: only names of columns may stand in braces, as in {text}")

    @property
    def columns(self) -> list[str]:
        """The columns it names."""
        return [column for _, column, _, _ in self._parts if column is not None]

    def fill(self, row: dict[str, str]) -> str:
        """The text with a row's cells in it."""
        return "".join(text + (row[column] if column is not None else "") for text, column, _, _ in self._parts)


class CsvRecords:
    """See `LineFormat`; without a template the column ``prompt`` is the message."""

    name: ClassVar[FormatName] = "csv"

    def __init__(self, defaults: Defaults, prompt: str | None = None) -> None:
        self._defaults = defaults
        self._template = PromptTemplate("{prompt}" if prompt is None else prompt)
        self._columns: list[str] = []
        self._separator = _SEPARATORS[0]
        csv.field_size_limit(MAX_REQUEST_BYTES + 1)  # the module's own is 128 KiB

    def records(self, lines: Iterable[tuple[int, bytes]]) -> Iterator[Record]:
        """See `LineFormat`; the first row is the header."""
        lines = iter(lines)
        first = next((line for line in lines if line[1].strip()), None)
        if first is None:
            return
        self._separator = max(_SEPARATORS, key=first[1].decode("utf-8", "replace").count)
        rows = self._rows(chain([first], lines))
        self._read_header(next(rows))
        yield from rows

    def caller_id(self, record: Record) -> CallerId:
        """See `LineFormat`."""
        try:
            return self._id_in(self._row(record))
        except InvalidRequest:
            return None

    def parse(self, record: Record) -> ParsedRecord:
        """See `LineFormat`."""
        row = self._row(record)
        content = self._template.fill(row)
        if not content.strip():
            raise InvalidRequest("prompt: must not be empty")
        fields = {"messages": [{"role": "user", "content": content}]}
        return parse_fields(self._id_in(row), self._defaults.apply(fields))

    def _read_header(self, record: Record) -> None:
        self._columns = [column.strip() for column in self._cells(record)]
        for column in self._template.columns:
            if self._columns.count(column) > 1:
                raise InvalidRequest(f"several columns are called {column!r}")
            if column not in self._columns:
                raise InvalidRequest(
                    f"there is no column {column!r}, only {', '.join(map(repr, self._columns))[:300]}; "
                    'say with --prompt "... {COLUMN} ..." how a row becomes a prompt'
                )

    def _rows(self, lines: Iterator[tuple[int, bytes]]) -> Iterator[Record]:
        """Rows as Python's reader finds them, each with the bytes that it was read from."""
        feed = _LineFeed(lines)
        reader = csv.reader(feed, delimiter=self._separator)
        while not feed.is_over:
            feed.start_row()
            with suppress(csv.Error):  # what is wrong with the row parse() says
                next(reader, None)
            if (text := b"".join(feed.taken).strip(b"\r\n")).strip():
                yield Record(feed.number, text)

    def _row(self, record: Record) -> dict[str, str]:
        cells = self._cells(record)
        if len(cells) != len(self._columns):
            raise InvalidRequest(f"the row has {len(cells)} fields, the header {len(self._columns)}")
        return dict(zip(self._columns, cells, strict=True))

    def _cells(self, record: Record) -> list[str]:
        check_length(record)
        try:
            text = io.StringIO(record.text.decode(), newline="")
        except UnicodeDecodeError:
            raise InvalidRequest("the row is not valid text in UTF-8") from None
        try:
            return next(csv.reader(text, delimiter=self._separator, strict=True))
        except csv.Error as error:
            raise InvalidRequest(f"the row is not valid CSV: {error}") from None

    def _id_in(self, row: dict[str, str]) -> str | None:
        return next((row[column] or None for column in _ID_COLUMNS if column in row), None)


class _LineFeed:
    """Hands a file's lines to Python's reader and keeps those of the row that it is at."""

    def __init__(self, lines: Iterator[tuple[int, bytes]]) -> None:
        self._lines = lines
        self.is_over = False
        self.start_row()

    def start_row(self) -> None:
        self.number = 0
        self.taken: list[bytes] = []
        self._num_bytes = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._num_bytes > MAX_REQUEST_BYTES:
            raise StopIteration  # ends the row: a quote that is never closed must not swallow the file
        number, line = next(self._lines, (0, b""))
        if not line:
            self.is_over = True
            raise StopIteration
        self.number = self.number or number
        self.taken.append(line)
        self._num_bytes += len(line)
        return line.decode("utf-8", "replace")
