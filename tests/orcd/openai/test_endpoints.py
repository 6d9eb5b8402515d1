"""The endpoints: bodies by the path of their URL, with what a body does not say."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcd.errors import InvalidRequest
from orcd.openai.body_table import CHAT, COMPLETIONS, RESPONSES
from orcd.openai.endpoints import ENDPOINTS, parse_body, response_body
from orcd.result import Choice
from tests.orcd.openai.results import result

CHAT_URL, COMPLETIONS_URL, RESPONSES_URL = ENDPOINTS
BODIES: dict[str, dict[str, Any]] = {
    CHAT_URL: {"messages": [{"role": "user", "content": "hi"}]},
    COMPLETIONS_URL: {"prompt": "hi"},
    RESPONSES_URL: {"input": "hi"},
}
TABLES = {CHAT_URL: CHAT, COMPLETIONS_URL: COMPLETIONS, RESPONSES_URL: RESPONSES}


@pytest.mark.parametrize("url", ENDPOINTS)
def test_control_tokens_in_texts_stay_text_unless_the_body_says_otherwise(url: str) -> None:
    assert parse_body(url, BODIES[url]).special_tokens_in_content == "escape"
    body = {**BODIES[url], "special_tokens_in_content": "parse"}
    assert parse_body(url, body).special_tokens_in_content == "parse"


@pytest.mark.parametrize("url", ENDPOINTS)
def test_what_the_body_says_goes_before_defaults(url: str) -> None:
    defaults = {"max_tokens": 7, "temperature": 0.5}
    request = parse_body(url, {**BODIES[url], "temperature": 0.25, "top_p": None}, defaults)
    assert (request.max_tokens, request.temperature, request.top_p) == (7, 0.25, 1.0)


@pytest.mark.parametrize("url", ENDPOINTS)
def test_explicit_nulls_are_as_absent(url: str) -> None:
    nulls = dict.fromkeys(TABLES[url].keys() - BODIES[url].keys())
    assert parse_body(url, {**BODIES[url], **nulls}) == parse_body(url, BODIES[url])


@pytest.mark.parametrize("url", ENDPOINTS)
def test_fields_of_our_own_are_read_too(url: str) -> None:
    request = parse_body(url, {**BODIES[url], "deadline_s": 5, "on_disconnect": "cancel", "priority": 1})
    assert (request.deadline_s, request.on_disconnect, request.priority) == (5, "cancel", 1)


@pytest.mark.parametrize("url", ["/v1/embeddings", "", None, ["/v1/completions"]])
def test_another_url_is_refused(url: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^url: must be one of /v1/chat/completions, "):
        parse_body(url, {})


@pytest.mark.parametrize("body", [None, [], "x"])
def test_a_body_that_is_no_object_is_refused(body: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"^body: must be an object"):
        parse_body(CHAT_URL, body)


@pytest.mark.parametrize(
    ("url", "name"),
    [(CHAT_URL, "chat.completion"), (COMPLETIONS_URL, "text_completion"), (RESPONSES_URL, "response")],
)
def test_each_endpoint_has_its_object(url: str, name: str) -> None:
    assert response_body(url, BODIES[url], result(Choice("x")), 0)["object"] == name


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just("CANARY"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["type", "x"]), inner, max_size=3),
    max_leaves=4,
)


@settings(max_examples=400)
@given(url=st.sampled_from(list(ENDPOINTS)), data=st.data())
def test_any_field_is_read_or_refused_in_one_line_that_quotes_no_value(url: str, data: st.DataObject) -> None:
    names = st.sampled_from(sorted(TABLES[url]))
    fields = data.draw(st.dictionaries(names, VALUES, max_size=3))
    try:
        parse_body(url, {**BODIES[url], **fields})
    except InvalidRequest as error:
        assert len(error.message) < 250
        assert "CANARY" not in error.message
