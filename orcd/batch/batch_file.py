"""Prompt files: requests are read one by one; results are written so that an interrupted batch goes on later.

OUTPUT gets a line for each job that succeeded, ERRORS one for each line that cannot be read or whose job failed.
`orcd.batch.formats` says what inputs may look like, `orcd.batch.results` what is written.

While a batch is unfinished or has failures, ``OUTPUT.resume`` (`orcd.batch.journal`) holds its name. Job ids are made
of that, the line's place and its digest: the same line of the same batch is the same job until that job fails, so going
on neither loses a job nor runs one twice. A line is done when OUTPUT holds its result; a last line that was torn by a
crash is cut off and fetched again. What is remembered of a line takes nine bytes, and eight for its id.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType

from orcd.batch.batch_inputs import BatchInputs, Entry
from orcd.batch.batch_options import BatchOptions
from orcd.batch.journal import BatchCommand, Journal
from orcd.batch.line import Line, LineName
from orcd.batch.line_index import LineIndex
from orcd.batch.place import digest_of, job_id
from orcd.batch.results.result_file import ErrorFile, ErrorStream, ResultFile, ResultSink, ResultStream, is_stream
from orcd.errors import InvalidRequest, OrcdError
from orcd.result import Result


@dataclass(frozen=True, slots=True)
class BatchPaths:
    """The files of a batch as the command line has them; ``-`` is standard input or output.

    ``errors`` None is ``OUTPUT.errors.jsonl``, or standard error where OUTPUT is no file. Raises `InvalidRequest` if
    two are the same file.
    """

    inputs: Sequence[str]
    output: str
    errors: str | None = None

    def __post_init__(self) -> None:
        files = [path for path in (*self.inputs, self.output, self.errors_name) if path and not is_stream(path)]
        if len({Path(path).resolve() for path in files}) != len(files):
            raise InvalidRequest("INPUT, OUTPUT and the error file must be different files")

    @property
    def errors_name(self) -> str | None:
        """Where failed lines go; None for standard error."""
        return self.errors or (None if is_stream(self.output) else self.output + ".errors.jsonl")


class BatchFile:
    """Prompt files with their results and errors. Use as a context manager; holds a lock on OUTPUT meanwhile.

    Whoever goes on with a batch runs lines again whose jobs have failed, unless ``retries_failures`` is false: then he
    finds the same jobs. Raises `InvalidRequest` when an input cannot be read or OUTPUT is not a result file of the same
    inputs.
    """

    def __init__(self, paths: BatchPaths, options: BatchOptions, *, retries_failures: bool = True) -> None:
        self._paths = paths
        self._retries_failures = retries_failures
        self._options = options
        self._salt = options.salt
        self.can_go_on = not is_stream(paths.output)
        self.num_succeeded = 0
        self.num_failed = 0

    @property
    def num_lines(self) -> int:
        """Lines of the inputs that are not empty."""
        return self._inputs.num_lines

    @property
    def num_resumed(self) -> int:
        """Lines whose result was in OUTPUT already."""
        return self._index.num_done

    @property
    def num_done(self) -> int:
        """Lines that need no more work: results of this and earlier runs, and errors."""
        return self.num_resumed + self.num_succeeded + self.num_failed

    @property
    def in_input_order(self) -> bool:
        """Whether results are to be written in the order of the lines."""
        return self._options.order == "input"

    def __enter__(self) -> BatchFile:
        with ExitStack() as closing:
            base = Path(self._paths.output)
            if not self.can_go_on:
                base = Path(closing.enter_context(TemporaryDirectory(prefix="orcd-batch-")), "output")
            self._inputs = BatchInputs(self._paths.inputs, base, self._options)
            output = ResultFile(base) if self.can_go_on else None
            self._output: ResultSink = output or ResultStream.open(self._paths.output)
            closing.callback(self._output.close)
            self._inputs.open()
            self._result_format = self._options.result_format(set(self._inputs.formats))
            self._index = LineIndex(self._inputs.last_numbers)
            if output is not None:
                self._read_results(output)
            self._open_journal(base)
            closing.callback(self._journal.close)
            self._errors = _open_errors(self._paths.errors_name)
            closing.callback(self._errors.close)
            self._closing = closing.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._closing:
            if kind is None:
                self._output.sync()
                if not self.num_failed:
                    self._journal.remove()
                    self._inputs.remove_copies()

    def pending(self) -> Iterator[Line]:
        """The lines that have no result yet; what is wrong with broken ones goes to the error file.

        Raises `InvalidRequest` when a line is not the one that OUTPUT has a result for.
        """
        for entry in self._inputs.entries():
            digest = digest_of(entry.record.text, self._salt)
            done = self._index.digest(entry.place)
            if done is None:
                try:
                    line = self._line(entry, digest)
                except InvalidRequest as error:
                    self.fail(self._name(entry), error)
                    continue
                yield line
            elif done != digest:
                raise InvalidRequest(
                    f"{self._inputs.describe(entry.place)} is not the one that {self._paths.output} has a result for: "
                    "the input or the options have changed; choose another OUTPUT"
                )

    def submit(self, lines: Sequence[Line]) -> None:
        """Their jobs are about to be submitted."""
        self._journal.submit({line.name.place: line.digest for line in lines})

    def was_submitted(self, line: Line) -> bool:
        """Whether an earlier run had submitted its job and did not see its end."""
        return line.name.place in self._journal.in_flight

    def succeed(self, line: Line, result: Result) -> None:
        """Write a job's result."""
        self._output.write(self._result_format.result(line, result))
        self.num_succeeded += 1

    def fail(self, name: LineName, error: OrcdError) -> None:
        """Write why a line has no result; its next job, if it had one and is tried again, is another one."""
        if name.job_id is not None and self._retries_failures:
            self._journal.fail(name.place)
        self._errors.write(self._result_format.failure(name, error))
        self.num_failed += 1

    def _read_results(self, output: ResultFile) -> None:
        for place, digest in output.read(self._result_format):
            try:
                self._index.finish(place, digest)
            except IndexError:
                raise InvalidRequest(
                    f"{self._paths.output} has a result for a line that no input has; choose another OUTPUT"
                ) from None

    def _open_journal(self, base: Path) -> None:
        errors = self._paths.errors
        self._journal = Journal(Journal.path_for(base))
        self._journal.read(self._index)
        self._journal.open(
            BatchCommand(
                self._inputs.paths,
                self._inputs.formats,
                errors and str(Path(errors).absolute()),
                self._options,
                self._inputs.last_numbers,
            ),
            self._index.failures(),
        )

    def _line(self, entry: Entry, digest: int) -> Line:
        parsed = self._inputs.parse(entry)
        num_failures = self._index.num_failures(entry.place)
        id = job_id(self._journal.name, entry.place, digest, num_failures)
        return Line(
            LineName(entry.place, self._inputs.file_name(entry.place), parsed.id, id),
            digest,
            id,
            parsed.request,
            parsed.url,
            parsed.body,
            int(time.time()),
            len(entry.record.text),
        )

    def _name(self, entry: Entry) -> LineName:
        return LineName(entry.place, self._inputs.file_name(entry.place), self._inputs.caller_id(entry))


def _open_errors(name: str | None) -> ResultSink:
    if name is None:
        return ErrorStream()
    return ResultStream.open(name) if is_stream(name) else ErrorFile(Path(name))
