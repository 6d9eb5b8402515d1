"""Reading a body's fields by a table."""

from __future__ import annotations

from typing import Any

import pytest

from orcd.errors import InvalidRequest
from orcd.openai.body_fields import BodyFields, Combined, Ignored, Read, Treatment, Unsupported, unsupported


def _doubled(value: Any) -> Any:
    if not isinstance(value, int):
        raise ValueError("must be a whole number")
    return value * 2 if value else None


TABLE: dict[str, Treatment] = {
    "text": Read("prompt"),
    "length": Read("max_tokens", _doubled),
    "words": Read("max_tokens"),
    "effort": Read("chat_template_kwargs.effort"),
    "variables": Read("chat_template_kwargs"),
    "choices": Read("structured_outputs.choice"),
    "pair": Combined("read with others"),
    "user": Ignored("names somebody"),
    "beams": Unsupported("there are none", off=(1, "off")),
}


def refusal(body: Any) -> str:
    with pytest.raises(InvalidRequest) as caught:
        BodyFields(body, TABLE).to_request({})
    return caught.value.message


def test_every_field_is_treated_as_its_table_says() -> None:
    body = {"text": "x", "length": 3, "effort": "low", "pair": 5, "user": [1], "beams": 1}
    fields = BodyFields(body, TABLE)
    assert fields.request == {"prompt": "x", "max_tokens": 6, "chat_template_kwargs": {"effort": "low"}}
    assert fields.combined == {"pair": 5}


def test_a_value_that_says_nothing_is_as_absent() -> None:
    assert BodyFields({"length": 0, "text": None}, TABLE).request == {}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"textt": "x"}, "textt: unknown field; did you mean text?"),
        ({"zzzzz": "x"}, "zzzzz: unknown field"),
        ({5: "x"}, "5: unknown field"),
        ({"beams": 2}, "beams is not supported: there are none"),
        ({"beams": True}, "beams is not supported: there are none"),
        ({"length": "x"}, "length: must be a whole number"),
        ({"length": 2, "words": 5}, "words: length says another value; give one of the two"),
        ({"variables": 5, "effort": 1}, "variables: must be an object"),
        ({"variables": {"effort": 2}, "effort": 1}, "effort: variables says another value; give one of the two"),
        ({"text": "x", "words": "x"}, "words: expected `int | null`"),
        ({"text": 5}, "text: expected `str | null`"),
        ({"text": "x", "choices": "y"}, "choices: expected `array | null`"),
        ({"text": "x", "choices": ["y", 5]}, "choices[1]: expected `str`"),
    ],
)
def test_a_refusal_names_the_field_as_the_body_has_it(body: Any, said: str) -> None:
    assert refusal(body).startswith(said)


def test_two_names_that_say_the_same_are_no_fault() -> None:
    assert BodyFields({"length": 2, "words": 4}, TABLE).request == {"max_tokens": 4}


def test_the_callers_objects_are_left_as_they_are() -> None:
    variables = {"a": 1}
    BodyFields({"variables": variables, "effort": "low"}, TABLE)
    assert variables == {"a": 1}


def test_a_field_can_be_required() -> None:
    fields = BodyFields({"text": "x", "pair": 1}, TABLE)
    fields.require("text")
    fields.require("pair")
    with pytest.raises(InvalidRequest, match=r"^words: must be given$"):
        fields.require("words")


def test_what_is_not_supported_says_what_to_do() -> None:
    assert unsupported("beams").message == "beams is not supported"
    assert unsupported("beams", "use n").message == "beams is not supported: use n"
