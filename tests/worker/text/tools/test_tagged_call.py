"""Calls in tags and calls as GLM and Gemma write them: what their arguments become, and what is no call."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.worker.text.tools.noting_sink import NotingSink
from worker.text.tools.call_reader import CallSink, NotACall, Reader
from worker.text.tools.tagged_call import MAX_DEPTH, GemmaCall, GlmCall, TaggedCall

SCHEMA = {
    "properties": {
        "text": {"type": "string"},
        "both": {"type": ["string", "null"]},
        "number": {"type": "integer"},
        "list": {"type": "array"},
        "any": {"anyOf": [{"type": "integer"}, {"type": "object"}]},
        "odd": 5,
    }
}


def read(text: str, make: Any) -> tuple[str, Any]:
    """The name and the arguments of a call that ends with the ``text``."""
    sink: Any = NotingSink()
    reader: Reader[None] = make(sink).calls()
    next(reader)
    for char in text[:-1]:
        reader.send(char)
        assert not sink.told
    with pytest.raises(StopIteration):
        reader.send(text[-1])
    name, arguments, accepted = sink.told
    assert accepted == "accepted"
    return name, json.loads(arguments)


def tagged(sink: CallSink) -> TaggedCall:
    return TaggedCall(sink, {"f": SCHEMA})


def of_glm(sink: CallSink) -> GlmCall:
    return GlmCall(sink, {"f": SCHEMA})


def parameter(key: str, text: str) -> str:
    return f"<parameter={key}>\n{text}\n</parameter>\n"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("text", "5", "5"),
        ("text", "two\n\nlines <b>\n", "two\n\nlines <b>\n"),
        ("both", "null", "null"),
        ("number", "5", 5),
        ("number", "five", "five"),
        ("number", "1e999", "1e999"),
        ("number", "9" * 5000, "9" * 5000),
        ("list", '["a", {"b": null}]', ["a", {"b": None}]),
        ("list", r'["\ud800"]', r'["\ud800"]'),
        ("any", '{"a": 1}', {"a": 1}),
        ("any", "plain", "plain"),
        ("odd", "5", "5"),
        ("unknown", "5", "5"),
    ],
)
def test_the_schema_says_whether_a_parameter_is_text_or_json(key: str, text: str, value: Any) -> None:
    call = f"\n<function=f>\n{parameter(key, text)}</function>"
    assert read(call, tagged) == ("f", {key: value})
    call = f"f\n<arg_key>{key}</arg_key>\n<arg_value>{text}</arg_value>\n</tool_call>"
    assert read(call, of_glm) == ("f", {key: value})


def test_tags_may_stand_close_together_and_tools_be_unknown() -> None:
    assert read("<function=g><parameter=a>1</parameter></function>", tagged) == ("g", {"a": "1"})
    assert read("<function=f></function>", tagged) == ("f", {})
    assert read("<function=g><parameter=$a b>1</parameter></function>", tagged) == ("g", {"$a b": "1"})
    assert read("g<arg_key>$a b</arg_key><arg_value>1</arg_value></tool_call>", of_glm) == ("g", {"$a b": "1"})
    assert read(" f.g-1 </tool_call>", of_glm) == ("f.g-1", {})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ("a:1", {"a": 1}),
        ("a:-0.5e3,b:true,c:null,d:False", {"a": -500.0, "b": True, "c": None, "d": False}),
        ('a:<|"|>x, {y} "z"\\n<|"|>', {"a": 'x, {y} "z"\\n'}),
        ('<|"|>a b<|"|>:[]', {"a b": []}),
        ('a:[1,[<|"|>x<|"|>],{}], b:{c:{d:2}}', {"a": [1, ["x"], {}], "b": {"c": {"d": 2}}}),
        ("a:plain text", {"a": "plain text"}),
        ("a:007,b:1e999", {"a": "007", "b": "1e999"}),
    ],
)
def test_gemmas_arguments_become_json(text: str, value: dict[str, Any]) -> None:
    assert read(f"call:f.g-1{{{text}}}", GemmaCall) == ("f.g-1", value)


@pytest.mark.parametrize(
    ("text", "make"),
    [
        ("f", tagged),
        ("<tool>", tagged),
        ("<function=>", tagged),
        ("<function=a b>", tagged),
        ("<function=f>x", tagged),
        ("<function=f><value=a>", tagged),
        ("<function=" + "x" * 600, tagged),
        ("<arg_key>", of_glm),
        ("f g<", of_glm),
        ("f<tool>", of_glm),
        ("f<arg_key>a</arg_key>x", of_glm),
        ("f<arg_key>a</arg_key><arg_key>", of_glm),
        ("f<arg_key>a</arg_key><arg_value>1</arg_value>x", of_glm),
        ("x" * 600, of_glm),
        ("coil:f{", GemmaCall),
        ("call:{", GemmaCall),
        ("call:f g{", GemmaCall),
        ("call:f{a:[1}", GemmaCall),
        ("call:f{a:{}x", GemmaCall),
        ("call:f{a:<|x", GemmaCall),
        ("call:f{a:" + "[" * (MAX_DEPTH + 1), GemmaCall),
        ("call:f{a:" + "x" * 600, GemmaCall),
        ("x" * 600, GemmaCall),
    ],
)
def test_what_goes_on_as_no_call_does_is_told_at_once(text: str, make: Any) -> None:
    sink: Any = NotingSink()
    reader = make(sink).calls()
    next(reader)
    with pytest.raises(NotACall):
        for char in text:
            reader.send(char)
    assert not sink.told
