"""The table of sampling parameters, and what has a line for each of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec
import pytest

from orcd.errors import InvalidRequest
from orcd.request import Request
from orcd.sampling import (
    ENGINE_LIMITS,
    MAX_LOGPROBS,
    PARAMETERS,
    EngineSampling,
    SamplingFields,
    SamplingKeywords,
    Where,
    check,
    convert,
)

DOCS = Path(__file__).parents[2] / "docs"
AS_KEYWORDS = {"messages", "prompt_token_ids", "logit_bias", "stop", "stop_token_ids", "bad_words"}  # any sequence


def test_a_row_says_everything_of_a_parameter() -> None:
    assert tuple(PARAMETERS) == SamplingFields.__struct_fields__
    for parameter in PARAMETERS.values():
        assert parameter.where in get_args(Where)
        assert parameter.meaning and parameter.values and parameter.default


@pytest.mark.parametrize(
    ("name", "values", "default"),
    [
        ("top_k", "integer from 0 to 2147483647", "0"),
        ("top_p", "number from 0 (excluded) to 1", "1.0"),
        ("logprobs", f"integer from 0 to {MAX_LOGPROBS}", "null"),
        ("ignore_eos", "true or false", "false"),
        ("stop", "at most 16: text of 1 to 1024 characters", "[]"),
        ("stop_token_ids", "at most 256: integer from 0 to 2147483647", "[]"),
        ("bad_words", "at most 128: text of 1 to 256 characters", "[]"),
        ("logit_bias", "at most 4096: integer from 0 to 2147483647, each with a number from -100 to 100", "{}"),
    ],
)
def test_a_row_tells_limits_and_default_in_words(name: str, values: str, default: str) -> None:
    assert (PARAMETERS[name].values, PARAMETERS[name].default) == (values, default)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("max_tokens", 1, 2**31 - 1),
        ("min_tokens", 0, 2**31 - 1),
        ("temperature", 0.0, 2.0),
        ("top_p", math.ulp(0.0), 1.0),
        ("top_k", 0, 2**31 - 1),
        ("min_p", 0.0, 1.0),
        ("repetition_penalty", 0.01, 10.0),
        ("presence_penalty", -2.0, 2.0),
        ("frequency_penalty", -2.0, 2.0),
        ("seed", 0, 2**63 - 1),
        ("n", 1, 16),
        ("logprobs", 0, MAX_LOGPROBS),
        ("prompt_logprobs", 0, MAX_LOGPROBS),
    ],
)
def test_a_number_may_be_what_its_row_says_and_nothing_beyond(name: str, least: float, most: float) -> None:
    step: Callable[[float, float], float]
    step = math.nextafter if isinstance(most, float) else lambda value, to: value + (1 if to > value else -1)
    for value in (least, most):
        assert getattr(convert({name: value}, SamplingFields), name) == value
    for value in (step(least, -math.inf), step(most, math.inf)):
        with pytest.raises(InvalidRequest, match=f"^{name}: "):
            convert({name: value}, SamplingFields)
    assert str(most).removesuffix(".0") in PARAMETERS[name].values


def test_keyword_arguments_are_the_fields_and_have_their_types() -> None:
    fields, keywords = get_type_hints(SamplingFields), get_type_hints(SamplingKeywords)
    assert tuple(keywords) == tuple(fields)
    for name in fields.keys() - AS_KEYWORDS:
        assert keywords[name] == fields[name], name


def test_the_engine_is_told_of_all_that_does_not_act_on_the_request_alone() -> None:
    told = {field.name: field for field in msgspec.structs.fields(EngineSampling)}
    assert told.keys() == {name for name, parameter in PARAMETERS.items() if parameter.where != "request"}
    for name in told.keys() - {"max_tokens", "seed", "stop_token_ids", "bad_words"}:  # `PromptEncoder` fills these in
        default = told[name].default_factory() if told[name].default is msgspec.NODEFAULT else told[name].default
        assert default == getattr(SamplingFields(), name), name


def test_what_an_engine_is_told_is_within_the_same_limits_but_for_those_of_its_own() -> None:
    told = EngineSampling(max_tokens=1)
    check(told)
    for name in EngineSampling.__struct_fields__:
        other = msgspec.structs.replace(told, **{name: "many"})
        if name in ENGINE_LIMITS:
            check(other)
            continue
        with pytest.raises(InvalidRequest, match=f"^{name}: "):
            check(other)


def test_the_order_on_the_wire_to_the_engine_only_grows() -> None:
    assert EngineSampling.__struct_fields__[:15] == (
        "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "logit_bias", "seed", "stop_token_ids", "min_tokens", "logprobs",
        "bad_words", "prompt_logprobs",
    )  # fmt: skip


def test_the_documentation_has_the_table_and_names_every_field_of_a_request() -> None:
    rows = [
        f"| `{name}` | {row.values} | `{row.default}` | {row.where} | {row.meaning} |"
        for name, row in PARAMETERS.items()
    ]
    reference = (DOCS / "reference.md").read_text(encoding="utf-8")
    table = [line for line in reference.splitlines() if line.startswith("| `")]
    assert table == rows, "it should be:\n" + "\n".join(rows)
    paragraphs = (DOCS / "enqueue.md").read_text(encoding="utf-8").split("\n\n")
    [paragraph] = [text for text in paragraphs if text.startswith("A request has one of `prompt`")]
    assert set(re.findall(r"`([a-z_]+)`", paragraph)) | PARAMETERS.keys() == set(Request.__struct_fields__)
