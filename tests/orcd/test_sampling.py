"""The table of sampling parameters, and what has a line for each of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args, get_type_hints

import msgspec

from orcd.request import Request
from orcd.sampling import FLOATS, MAX_LOGPROBS, PARAMETERS, EngineSampling, SamplingFields, SamplingKeywords, Where

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
AS_KEYWORDS = {"messages", "prompt_token_ids", "logit_bias", "stop", "stop_token_ids"}  # any mapping or sequence


def test_a_row_says_everything_of_a_parameter() -> None:
    assert tuple(PARAMETERS) == SamplingFields.__struct_fields__
    for parameter in PARAMETERS.values():
        assert parameter.where in get_args(Where)
        assert parameter.meaning
        assert parameter.default is None or isinstance(
            parameter.default, getattr(parameter.type, "__origin__", parameter.type)
        )
    assert PARAMETERS["top_k"].bounds == (0, 2**31 - 1)
    assert PARAMETERS["top_p"].bounds == (0, 1)
    assert PARAMETERS["logprobs"].bounds == (0, MAX_LOGPROBS)
    assert PARAMETERS["logit_bias"].bounds == (-100, 100)
    assert PARAMETERS["stop"].bounds is None
    assert set(FLOATS) == {name for name, value in PARAMETERS.items() if isinstance(value.default, float)}


def test_keyword_arguments_are_the_fields_and_have_their_types() -> None:
    fields, keywords = get_type_hints(SamplingFields), get_type_hints(SamplingKeywords)
    assert tuple(keywords) == tuple(fields)
    for name in fields.keys() - AS_KEYWORDS:
        assert keywords[name] == fields[name], name


def test_the_engine_is_told_of_all_that_does_not_act_on_the_request_alone() -> None:
    told = {field.name: field for field in msgspec.structs.fields(EngineSampling)}
    assert told.keys() == {name for name, parameter in PARAMETERS.items() if parameter.where != "request"}
    for name in told.keys() - {"max_tokens", "seed", "stop_token_ids"}:  # `PromptEncoder` fills these in
        default = told[name].default_factory() if told[name].default is msgspec.NODEFAULT else told[name].default
        assert default == PARAMETERS[name].default, name


def test_the_order_on_the_wire_to_the_engine_only_grows() -> None:
    assert EngineSampling.__struct_fields__[:13] == (
        "max_tokens", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty", "logit_bias", "seed", "stop_token_ids", "min_tokens", "logprobs",
    )  # fmt: skip


def test_the_readme_names_every_field_of_a_request() -> None:
    [paragraph] = re.findall(r"^A request has one of `prompt`.*?\n\n", README, re.MULTILINE | re.DOTALL)
    assert set(re.findall(r"`([a-z_]+)`", paragraph)) == set(Request.__struct_fields__)
