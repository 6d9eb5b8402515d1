"""What the command line of a batch says besides its files."""

from __future__ import annotations

from typing import Literal

import msgspec

from orcd.batch.formats.csv_records import CsvRecords
from orcd.batch.formats.defaults import Defaults
from orcd.batch.formats.line_format import FormatName, LineFormat
from orcd.batch.formats.openai_lines import OpenaiLines
from orcd.batch.formats.orcd_lines import OrcdLines
from orcd.batch.formats.text_lines import TextLines
from orcd.batch.results.openai_results import OpenaiResults
from orcd.batch.results.orcd_results import OrcdResults
from orcd.batch.results.result_format import ResultFormat
from orcd.errors import InvalidRequest


class BatchOptions(msgspec.Struct, frozen=True, omit_defaults=True):
    """``prompt`` is the template that makes prompts of the rows of CSV files; ``order`` that of the lines of OUTPUT.

    With ``fail_fast`` a line fails if no worker serves its model.
    """

    format: Literal["auto", "orcd", "openai", "text", "csv"] = "auto"
    output_format: Literal["auto", "orcd", "openai"] = "auto"
    order: Literal["input", "completion"] = "completion"
    prompt: str | None = None
    fail_fast: bool = False
    defaults: Defaults = Defaults()

    @property
    def salt(self) -> bytes:
        """What makes of one line two different requests under different options; b"" where there are none."""
        relevant = BatchOptions(prompt=self.prompt, defaults=self.defaults)
        return b"" if relevant == BatchOptions() else msgspec.json.encode(relevant, order="sorted")

    def line_format(self, name: FormatName) -> LineFormat:
        """The format of that name, for one file. Raises `InvalidRequest` for a template that nothing would use."""
        if name == "csv":
            return CsvRecords(self.defaults, self.prompt)
        if self.prompt is not None:
            raise InvalidRequest(
                f"--prompt: makes prompts of the rows of CSV files; this file is {name} (see --format)"
            )
        if name == "text":
            return TextLines(self.defaults)
        return OpenaiLines(self.defaults) if name == "openai" else OrcdLines(self.defaults)

    def result_format(self, inputs: set[FormatName]) -> ResultFormat:
        """How results are written: as OpenAI does where the inputs are OpenAI's, unless the options say otherwise.

        Raises `InvalidRequest` where some inputs are and others are not.
        """
        if self.output_format == "auto" and "openai" in inputs and len(inputs) > 1:
            raise InvalidRequest("some inputs have OpenAI's lines and others not; say --output-format openai or orcd")
        is_openai = self.output_format == "openai" or (self.output_format == "auto" and inputs == {"openai"})
        return OpenaiResults() if is_openai else OrcdResults()
