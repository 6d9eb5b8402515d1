from __future__ import annotations

import pytest

from orcd.batch.batch_options import BatchOptions
from orcd.batch.formats.defaults import Defaults
from orcd.batch.formats.line_format import FormatName
from orcd.batch.results.openai_results import OpenaiResults
from orcd.batch.results.orcd_results import OrcdResults
from orcd.errors import InvalidRequest


def test_only_what_changes_requests_tells_batches_apart() -> None:
    assert BatchOptions().salt == BatchOptions(format="csv", order="input", output_format="openai").salt == b""
    salts = {
        options.salt
        for options in (
            BatchOptions(),
            BatchOptions(prompt="{a}"),
            BatchOptions(defaults=Defaults({"seed": 1})),
            BatchOptions(defaults=Defaults(system="a")),
        )
    }
    assert len(salts) == 4
    one, other = Defaults({"seed": 1, "n": 2}), Defaults({"n": 2, "seed": 1})
    assert BatchOptions(defaults=one).salt == BatchOptions(defaults=other).salt


@pytest.mark.parametrize("name", ["orcd", "openai", "text", "csv"])
def test_each_format_has_a_reader(name: FormatName) -> None:
    assert BatchOptions().line_format(name).name == name


def test_a_template_is_for_tables_only() -> None:
    assert BatchOptions(prompt="{a}").line_format("csv").name == "csv"
    with pytest.raises(InvalidRequest, match="--prompt: makes prompts of the rows of CSV files; this file is text"):
        BatchOptions(prompt="{a}").line_format("text")


def test_results_have_the_format_of_the_inputs_unless_another_one_is_said() -> None:
    assert isinstance(BatchOptions().result_format({"openai"}), OpenaiResults)
    assert isinstance(BatchOptions().result_format({"csv", "text", "orcd"}), OrcdResults)
    assert isinstance(BatchOptions(output_format="orcd").result_format({"openai"}), OrcdResults)
    assert isinstance(BatchOptions(output_format="openai").result_format({"csv", "openai"}), OpenaiResults)
    with pytest.raises(InvalidRequest, match="say --output-format openai or orcd"):
        BatchOptions().result_format({"csv", "openai"})
