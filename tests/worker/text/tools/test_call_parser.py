"""Text, calls, and what turns out to be no call, however the text comes in."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.text.tools.answer_parts import AnswerParts, joined
from worker.text.tools.call_parser import MAX_HELD, CallParser
from worker.text.tools.call_syntax import FUNCTOOLS, HERMES, LLAMA3, MISTRAL, PHI4, CallSyntax

F = '{"name": "f", "arguments": {"a": 1}}'
G = '{"name": "g", "arguments": {}}'
BOTH = [("f", '{"a": 1}'), ("g", "{}")]


def parse(syntax: CallSyntax, text: str, size: int) -> tuple[str, list[tuple[str, str]]]:
    """The answer and the calls of a text that comes in pieces of this size."""
    parser, parts = CallParser(syntax, {"f", "g"}), AnswerParts()
    for start in range(0, len(text), size):
        parser.feed(text[start : start + size], parts)
    parser.finish(parts)
    return parts.answer, [(call.name, call.arguments) for call in joined(parts.calls)]


CASES: list[tuple[CallSyntax, str, str, list[tuple[str, str]]]] = [
    (HERMES, f"a\n<tool_call>{F}</tool_call>\n<tool_call>\n{G}\n</tool_call>\nb", "a\nb", BOTH),
    (HERMES, f"<tool_call>[{F},{G}]</tool_call>", "", BOTH),
    (HERMES, f"<tool_call>{F}<tool_call>{G}", "", BOTH),
    (HERMES, f"<tool_call>{F[:-1]}</tool_call><tool_call>{G}</tool_call>", "", BOTH),
    (HERMES, "<tool_call>no</tool_call> <tool_call>{}", "<tool_call>no</tool_call> <tool_call>{}", []),
    (HERMES, f"<tool_call><tool_call>{F}", "<tool_call>", BOTH[:1]),
    (HERMES, '<tool_call>{"name": "f", "arguments": {"a": 1', "", [("f", '{"a": 1')]),
    (HERMES, '<tool_call>{"name": "f", "arg', '<tool_call>{"name": "f", "arg', []),
    (HERMES, f"<tool_call>{F}\n</tool_", "", BOTH[:1]),
    (HERMES, f"<tool_call>{F[:-1]}, 5}}", ", 5}", BOTH[:1]),
    (HERMES, "<tool_call>{'name': 'f'}", "<tool_call>{'name': 'f'}", []),
    (HERMES, "a </tool_call> b <tool", "a </tool_call> b <tool", []),
    (HERMES, '<tool_call>{"name": "h", "arguments": {1,}}</tool_call>', "", [("h", "{1,}")]),
    (LLAMA3, f"\n{F}; {G}", "", BOTH),
    (LLAMA3, f"{F}\n{G} end", " end", BOTH),
    (LLAMA3, f"say {F}", f"say {F}", []),
    (LLAMA3, '{"name": "h", "parameters": {}}', '{"name": "h", "parameters": {}}', []),
    (LLAMA3, '<|python_tag|>{"name": "h", "parameters": {}}', "", [("h", "{}")]),
    (LLAMA3, "<|python_tag|>print(1)", "<|python_tag|>print(1)", []),
    (LLAMA3, '{"answer": {"name": "f"}}', '{"answer": {"name": "f"}}', []),
    (LLAMA3, "{{", "{{", []),
    (MISTRAL, f'[TOOL_CALLS] [{F[:-1]}, "id": "x"}}, {G}]', "", BOTH),
    (MISTRAL, 'a[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[CALL_ID]x[ARGS]{} b', "a b", BOTH),
    (MISTRAL, "[TOOL_CALLS]f(1) [1]", "[TOOL_CALLS]f(1) [1]", []),
    (PHI4, f"<|tool_call|>[{F}, {G}]\n<|/tool_call|>b", "b", BOTH),
    (PHI4, f"<|tool_call|>[{F}\n<|/tool_call|>b", "b", BOTH[:1]),
    (PHI4, f'<|tool_call|>[{F}, {{"name": "g', ', {"name": "g', BOTH[:1]),
    (FUNCTOOLS, f"import functools\nfunctools[{F}, {G}]", "import functools\n", BOTH),
]


@pytest.mark.parametrize(("syntax", "text", "answer", "calls"), CASES, ids=[case[1][:40] for case in CASES])
def test_calls_are_told_from_text_however_they_are_cut(
    syntax: CallSyntax, text: str, answer: str, calls: list[tuple[str, str]]
) -> None:
    for size in range(1, len(text) + 1):
        assert parse(syntax, text, size) == (answer, calls)


SNIPPETS = st.sampled_from(
    [
        *(
            "<tool_call>",
            "</tool_call>",
            "<|python_tag|>",
            "[TOOL_CALLS]",
            "<|tool_call|>",
            "<|/tool_call|>",
            "functools",
        ),
        *(F, G, "[", "]", "{", "}", ", ", "; ", "\n", '"', "é", "é<", "f[ARGS]", '{"name": "é', '{"a": "é"}', "<"),
        *('{"name": "f", ', '"arguments": {', '"parameters": {"é": ', '{"arguments": {"é": "}', '"name": "g"', "\\"),
    ]
)


@settings(max_examples=500)
@given(
    st.sampled_from([HERMES, LLAMA3, MISTRAL, PHI4, FUNCTOOLS]),
    st.lists(SNIPPETS, max_size=10).map("".join),
    st.integers(1, 9),
)
def test_no_text_is_lost_and_any_pieces_give_the_same(syntax: CallSyntax, text: str, size: int) -> None:
    answer, calls = parse(syntax, text, 1)
    assert parse(syntax, text, size) == parse(syntax, text, max(1, len(text))) == (answer, calls)
    kept = answer + "".join(name + arguments for name, arguments in calls)
    assert kept.count("é") == text.count("é"), "only what stands around calls is left out"


def test_a_call_that_says_its_name_too_late_stays_text() -> None:
    text = '<tool_call>{"arguments": {"a": "' + "x" * MAX_HELD + '"}, "name": "f"}'
    for size in (1, 1000, len(text)):
        assert parse(HERMES, text, size) == (text, [])


def test_nothing_is_held_back_within_arguments_and_behind_a_call() -> None:
    parser, parts = CallParser(HERMES, {"f"}), AnswerParts()
    held = []
    for text in ("a", " <", "tool_call>", '{"name": "f", "arguments": {', '"a": ', "1}", "}", "</tool_call>", "b"):
        parser.feed(text, parts)
        held.append(parser.holds_text)
    assert held == [False, True, True, False, False, False, False, False, False]


def test_what_somebody_else_has_shown_is_not_shown_again() -> None:
    parser, parts = CallParser(HERMES, {"f"}), AnswerParts()
    parser.feed('a <tool_call>{"name": "f', AnswerParts())
    parser.forget()
    parser.feed(f'"}} <tool_call>{F}', parts)
    assert (parts.answer, [call.index for call in joined(parts.calls)]) == ('"}', [0])


def test_text_passes_where_no_call_can_begin() -> None:
    parser = CallParser(LLAMA3, {"f"})
    assert not parser.passes("plain"), "an answer may begin with a call"
    parser.feed("plain", AnswerParts())
    assert parser.passes("plain {text}")
    assert not parser.passes("plain <") and not parser.passes("plain ")
