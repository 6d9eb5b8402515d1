"""Requests: what is accepted, and that everything else is refused by name."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcd import request
from orcd.errors import InvalidRequest
from orcd.request import MAX_REQUEST_BYTES, Request, RequestFields

PROMPT = {"prompt": "x"}


def refusal(fields: object) -> str:
    with pytest.raises(InvalidRequest) as error:
        request.encode(request.parse(fields))
    return str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "x"},
        {"messages": [{"role": "user", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}, {"role": "tool", "n": None}]},
        {"prompt_token_ids": [0, 2**31 - 1]},
        {**PROMPT, "max_tokens": None, "seed": None, "logprobs": None, "deadline_s": None, "model": None},
        {**PROMPT, "temperature": 0, "top_p": 1, "min_p": 0, "presence_penalty": -2, "frequency_penalty": 2},
        {**PROMPT, "logit_bias": {50: -100, 7: 0.5}, "stop": ["a"], "stop_token_ids": [3], "ignore_eos": True},
        {**PROMPT, "n": 16, "logprobs": 20, "priority": 9, "deadline_s": 0.001, "on_disconnect": "cancel"},
        {**PROMPT, "max_tokens": 5, "min_tokens": 5, "seed": 2**63 - 1},
        {"messages": [{"role": "user"}], "tools": [{"type": "function"}], "chat_template_kwargs": {"a": [None]}},
        {
            **PROMPT,
            "add_generation_prompt": False,
            "continue_final_message": True,
            "special_tokens_in_content": "escape",
        },
        {**PROMPT, "include_stop_str_in_output": True, "skip_special_tokens": False},
        {**PROMPT, "response_format": {"type": "json_object"}},
        {**PROMPT, "structured_outputs": {"choice": ["a", "b"]}, "response_format": {"type": "text"}},
    ],
)
def test_a_request_survives_the_way_through_redis(fields):
    parsed = request.parse(fields)
    assert request.decode(request.encode(parsed)) == parsed


def test_defaults_are_not_stored():
    assert request.encode(request.parse({**PROMPT, "n": 1, "stop": []})) == b'{"prompt":"x"}'


def test_one_stop_string_may_come_without_a_list():
    assert request.parse({**PROMPT, "stop": "END"}).stop == ["END"]


def test_keys_of_logit_bias_may_be_text_as_json_has_them():
    assert request.decode(b'{"prompt":"x","logit_bias":{"7":1.5}}').logit_bias == {7: 1.5}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", 5),
        ("prompt", b"bytes"),
        ("prompt", ""),
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_tokens", 10**30),
        ("min_tokens", -1),
        ("temperature", "hot"),
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("temperature", 10**400),
        ("temperature", None),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("tools", []),
        ("tools", [5]),
        ("chat_template_kwargs", []),
        ("add_generation_prompt", 1),
        ("continue_final_message", True),
        ("special_tokens_in_content", "x"),
        ("include_stop_str_in_output", 1),
        ("skip_special_tokens", None),
        ("min_p", 1.1),
        ("repetition_penalty", 0),
        ("presence_penalty", 2.1),
        ("frequency_penalty", -math.inf),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {-1: 1}),
        ("logit_bias", {5: math.nan}),
        ("logit_bias", {5: 101}),
        ("logit_bias", dict.fromkeys(range(4097), 1.0)),
        ("seed", -1),
        ("seed", 2**63),
        ("stop", ["a", ""]),
        ("stop", ["a"] * 17),
        ("stop", ["a" * 1025]),
        ("stop_token_ids", [2**31]),
        ("ignore_eos", 1),
        ("n", 0),
        ("n", 17),
        ("logprobs", 21),
        ("priority", 10),
        ("deadline_s", 0),
        ("deadline_s", math.nan),
        ("on_disconnect", "explode"),
        ("model", ""),
    ],
)
def test_a_bad_value_is_refused_by_the_field_s_name(field, value):
    assert refusal({**PROMPT, field: value}).startswith(field)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (None, "must be an object of named fields"),
        ([], "must be an object of named fields"),
        ({}, "exactly one of prompt, messages and prompt_token_ids; found none"),
        ({**PROMPT, "messages": [{"role": "user"}]}, "found prompt and messages"),
        ({**PROMPT, "temprature": 1}, "temprature: unknown field; did you mean temperature?"),
        ({**PROMPT, "max_completion_tokens": 1}, "max_completion_tokens: unknown field; did you mean max_tokens?"),
        ({**PROMPT, "zzzz": 1}, "zzzz: unknown field"),
        ({**PROMPT, 1: 2}, "request: a key: expected `str`"),
        ({**PROMPT, "min_tokens": 6, "max_tokens": 5}, "min_tokens: must not exceed max_tokens"),
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "user"}, {"content": "x"}]}, "messages[1]: needs a role"),
        ({"messages": [{"role": 5}]}, "messages[0]: needs a role"),
        ({"messages": [{1: "role"}]}, "messages[0]: a key: expected `str`"),
        ({"messages": [{"role": "user", "name": b"x"}]}, "messages: values must be plain JSON"),
        ({"messages": [{"role": "user", "name": math.nan}]}, "messages: values must be plain JSON"),
        ({"messages": [{"role": "user", "name": object()}]}, "messages: values must be plain JSON"),
        ({"messages": [{"role": "user", "content": b"x"}]}, "messages[0].content: must be text or a list of parts"),
        ({"messages": [{"role": "user"}, {"role": "user", "content": 0}]}, "messages[1].content: must be text"),
        ({"messages": [{"role": "user\ud800"}]}, "lone surrogate"),
        (
            {"messages": [{"role": "user"}, {"role": "user", "content": ["a", {"type": "image_url"}]}]},
            "messages[1].content[1]: image_url parts are not supported; a model here reads text only",
        ),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0]: parts without a type"),
        (
            {"messages": [{"role": "user", "content": [{"type": ["x"]}]}]},
            "messages[0].content[0]: parts without a type",
        ),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text: must be text"),
        ({"messages": [{"role": "user"}], "tools": [{"a": b"x"}]}, "tools: values must be plain JSON"),
        (
            {"messages": [{"role": "user"}], "chat_template_kwargs": {"a": math.nan}},
            "chat_template_kwargs: values must be",
        ),
        ({"prompt": "\udcff"}, "lone surrogate"),
        ({"prompt": "x" * (4 * 1024 * 1024 + 1)}, "prompt: expected `str` of length <= 4194304"),
        ({"prompt_token_ids": []}, "prompt_token_ids: "),
        ({"prompt_token_ids": [1, -1]}, "prompt_token_ids[1]: "),
    ],
)
def test_a_request_that_makes_no_sense_is_refused_with_the_reason(fields, words):
    assert words in refusal(fields)


def test_a_request_nested_for_ever_is_refused():
    loop: list = []
    loop.append(loop)
    assert "plain JSON" in refusal({"messages": [{"role": "user", "content": loop}]})
    deep = b'{"messages":[{"role":"user","content":' + b"[" * 100_000 + b"]" * 100_000 + b"}]}"
    with pytest.raises(InvalidRequest, match="nested too deeply"):
        request.decode(deep)


def test_the_limit_on_bytes_holds_both_ways():
    big = {"role": "user", "content": "x" * (MAX_REQUEST_BYTES // 3)}
    assert "at most 16777216 are allowed" in refusal({"messages": [big] * 3})
    with pytest.raises(InvalidRequest, match="at most 16777216 are allowed"):
        request.decode(b'{"prompt":"x"}' + b" " * MAX_REQUEST_BYTES)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b'{"prompt":"\xff"}', b'{"prompt":"\\ud800"}', b"\x00", b"NaN"])
def test_text_that_is_no_json_is_refused(text):
    with pytest.raises(InvalidRequest, match="not valid JSON in UTF-8"):
        request.decode(text)


def test_a_long_field_name_is_cut():
    assert len(refusal({**PROMPT, "y" * 10_000: 1})) < 120


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=300)
@given(st.dictionaries(st.sampled_from([*Request.__struct_fields__, "unknown"]), VALUES, max_size=4))
def test_any_fields_are_either_stored_faithfully_or_refused_in_one_line(fields):
    try:
        parsed = request.parse(fields)
        stored = request.encode(parsed)
    except InvalidRequest as error:
        assert len(error.message) < 200
    else:
        assert request.decode(stored) == parsed


@settings(max_examples=100)
@given(st.sampled_from(Request.__struct_fields__), VALUES.filter(lambda value: "CANARY" not in str(value)))
def test_no_refusal_quotes_a_value(field, value):
    fields = {"prompt": "CANARY", "messages": [{"role": "user", "content": "CANARY"}], field: value}
    assert "CANARY" not in refusal(fields | {"stop": "CANARY", "on_disconnect": "CANARY"})


def test_a_request_without_a_seed_gets_one_of_its_job_and_the_same_each_time():
    assert request.parse({**PROMPT, "seed": 3}).with_seed("a").seed == 3
    seeded = request.parse(PROMPT).with_seed("a")
    assert 0 <= seeded.seed < 2**63
    assert seeded.with_seed("b") == seeded
    assert request.parse(PROMPT).with_seed("a") == seeded
    assert request.parse(PROMPT).with_seed("b") != seeded
    assert msgspec.structs.replace(seeded, seed=None) == request.parse(PROMPT)


def test_defaults_are_for_what_the_fields_say_nothing_about():
    form = {"response_format": {"type": "json_object"}}
    assert request.with_defaults(PROMPT, {"n": 2, **form}) == {**PROMPT, "n": 2, **form}
    assert request.with_defaults({"n": 1}, {"n": 2}) == {"n": 1}
    other = {"structured_outputs": {"regex": "a"}}
    assert request.with_defaults(other, {"n": 2, **form}) == {"n": 2, **other}


def test_the_keyword_arguments_of_clients_are_the_fields_of_a_request():
    assert RequestFields.__annotations__.keys() == set(Request.__struct_fields__)
