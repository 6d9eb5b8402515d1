"""What is read as a call, and at which character something turns out to be none."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from tests.worker.text.tools.noting_sink import NotingSink
from worker.text.tools.call_reader import MAX_WORD, CallReader, NotACall
from worker.text.tools.call_syntax import HERMES, MISTRAL, CallSyntax


def read(text: str, syntax: CallSyntax = HERMES, names: Collection[str] | None = None) -> tuple[list[str], int | None]:
    """What a reader says, and how many characters it has read when the calls end; None if they go on."""
    sink = NotingSink()
    reader = CallReader(syntax, sink, names).calls()
    next(reader)
    for position, char in enumerate(text, start=1):
        try:
            reader.send(char)
        except StopIteration:
            return sink.told, position
        if sink.told[-1:] == ["{"]:  # what follows is the sink's, up to the end of the arguments
            return sink.told, None
    return sink.told, None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"name": "f"}', ["f", "{}", "accepted"]),
        (' {"type": "function", "name":"f\\u00e9", "id" : "x"} ', ["fé", "{}", "accepted"]),
        ('{"arguments": {"a": {}}, "name": "f"}', ["f", '{"a": {}}', "accepted"]),
        ('[{"name": "f"}, {"name": "g"} ]', ["f", "{}", "accepted", "g", "{}", "accepted"]),
    ],
)
def test_a_call_ends_with_its_bracket(text: str, told: list[str]) -> None:
    assert read(text + "?") == (told, len(text.rstrip()))


def test_arguments_behind_a_name_are_the_sinks() -> None:
    assert read('{"name": "f", "parameters": {"a"') == (["f", "{"], None)
    assert read("f.g-1[CALL_ID]abc[ARGS] {", MISTRAL) == (["f.g-1", "{"], None)
    assert read("f[ARGS]{", MISTRAL) == (["f", "{"], None)


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "{}",
        "{1",
        '{"name": 5',
        '{"name": ""',
        '{"name": "\\ud800"',
        '{"name": "f" "',
        '{"name": "f", "name": "g"',
        '{"name": "f", }',
        '{"name": "f", "arguments": "',
        '{"name": "f", "arguments": [',
        '{"arguments": {}}',
        '{"arguments": {}, "arguments": {',
        '{"other": 1',
        '{"na\\x"',
        '{"name": "' + "f" * MAX_WORD,
        "[]",
        '[{"name": "f"};',
        "[1",
    ],
)
def test_what_goes_on_in_another_way_is_no_call(text: str) -> None:
    with pytest.raises(NotACall):
        read(text)


@pytest.mark.parametrize(
    "text", ["a b", 'a"', "f[", "[ARGS]", "f[CALL_ID]a b", "f[OTHER]{", "f[ARGS]x", "f" * MAX_WORD]
)
def test_a_name_before_its_arguments_is_one_word_and_a_tag(text: str) -> None:
    with pytest.raises(NotACall):
        read(text + "?", MISTRAL)


def test_only_the_tools_of_a_request_are_called_where_their_names_are_given() -> None:
    assert read('{"name": "f"}', names={"f"})[0] == ["f", "{}", "accepted"]
    with pytest.raises(NotACall):
        read('{"name": "f"', names={"g"})
