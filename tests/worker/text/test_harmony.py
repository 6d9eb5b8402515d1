"""GPT-OSS's channels: reasoning kept apart from the answer, streamed and resumed like everything else."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.text.vocabularies import HARMONY, bpe_metadata
from worker.text import tokenizer
from worker.text.detokenizer import Detokenizer, TextDelta
from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.answer_parts import CallDelta

SUBJECT = tokenizer.from_metadata(
    bpe_metadata("a n", "t h", control=(*HARMONY, "<|endoftext|>"), pre="gpt-4o", eos_token_id=263)
)
PROMPT = "<|start|>user<|message|>Hi<|end|><|start|>assistant"


def ids_of(text: str) -> list[int]:
    return SUBJECT.encode(text, parse_special=True)


def shown(deltas: list[TextDelta]) -> tuple[str, str, str]:
    return (
        "".join(delta.text for delta in deltas),
        "".join(delta.analysis for delta in deltas),
        "".join(delta.commentary for delta in deltas),
    )


def run(ids: list[int], cuts: list[int] = [], stop: list[str] = [], start: int = 0) -> list[TextDelta]:  # noqa: B006
    detokenizer = Detokenizer(SUBJECT, stop, prompt_ids=ids_of(PROMPT))
    detokenizer.restore(ids[:start])
    borders = [start, *(cut for cut in cuts if start < cut < len(ids)), len(ids)]
    deltas = []
    for begin, end in pairwise(borders):
        deltas.append(detokenizer.feed(ids[begin:end]))
        if deltas[-1].stopped:
            return deltas
    return [*deltas, detokenizer.finish()]


REASONED = (
    "<|channel|>analysis<|message|>They want an END é.<|end|><|start|>assistant<|channel|>commentary to=functions.f "
    '<|constrain|>json<|message|>{"x": 1}<|call|><|start|>assistant<|channel|>final<|message|>The é END<|return|>'
)


def test_every_message_is_shown_in_its_channel_without_headers() -> None:
    assert shown(run(ids_of(REASONED))) == ("The é END", "They want an END é.", '{"x": 1}')


def test_only_the_answer_is_searched_for_stop_strings() -> None:
    deltas = run(ids_of(REASONED), stop=["END"])
    assert shown(deltas) == ("The é ", "They want an END é.", '{"x": 1}')
    assert deltas[-1].stopped


MESSAGES = st.lists(
    st.tuples(
        st.sampled_from(["analysis", "final", "commentary", "commentary to=f ", "unknown", ""]),
        st.text(st.sampled_from("anthé😀 EN"), max_size=6),
        st.sampled_from(["<|end|><|start|>assistant", "<|return|>", "", "<|endoftext|>"]),
    ),
    max_size=4,
)


@settings(max_examples=300)
@given(MESSAGES, st.lists(st.integers(1, 60), unique=True).map(sorted), st.binary(max_size=2))
def test_channels_are_the_same_at_every_split_and_after_every_resume(
    messages: list[tuple[str, str, str]], cuts: list[int], half_character: bytes
) -> None:
    expected = {"final": "", "analysis": "", "commentary": ""}
    ids: list[int] = []
    for channel, text, end in messages:
        ids += ids_of(f"<|channel|>{channel}<|message|>{text}") + list(half_character) + ids_of(end)
        name = channel.partition(" ")[0]
        expected[name if name in expected else "final"] += (text.encode() + half_character).decode("utf-8", "replace")
    deltas = run(ids, cuts, ["ENE"] if "ENE" not in expected["final"] else [])
    assert shown(deltas) == (expected["final"], expected["analysis"], expected["commentary"])
    assert sum(delta.num_ids for delta in deltas) == len(ids)
    start = 0
    for index, delta in enumerate(deltas[:-1], start=1):
        start += delta.num_ids
        assert shown(run(ids, cuts, start=start)) == shown(deltas[index:])


@pytest.mark.parametrize(
    ("prompt", "answer", "text", "analysis"),
    [
        ("Once upon", " a time", " a time", ""),
        ("<|start|>assistant<|channel|>analysis<|message|>So", " then", "", " then"),
        ("<|start|>assistant<|channel|>final<|message|>So", " then", " then", ""),
        ("<|start|>assistant", "<|message|>no channel", "no channel", ""),
        ("<|start|>assistant<|channel|>", "analysis<|message|>yes", "", "yes"),
    ],
)
def test_the_prompt_says_where_the_answer_begins(prompt: str, answer: str, text: str, analysis: str) -> None:
    delta = Detokenizer(SUBJECT, prompt_ids=ids_of(prompt)).feed(ids_of(answer))
    assert (delta.text, delta.analysis) == (text, analysis)


TOOLS = AnswerForm().with_tools([{"function": {"name": "f"}}])


def calls_of(answer: str, prompt: str = "<|start|>assistant") -> TextDelta:
    return Detokenizer(SUBJECT, prompt_ids=ids_of(prompt), form=TOOLS).feed(ids_of(answer))


@pytest.mark.parametrize(
    "header",
    [
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.f<|constrain|>json<|message|>",
        " to=functions.f<|channel|>commentary json<|message|>",
        "<|channel|>analysis to=functions.f<|message|>",
    ],
)
def test_a_message_to_a_function_is_a_call_wherever_the_header_names_it(header: str) -> None:
    delta = calls_of(header + '{"x": "é"}<|call|>')
    assert delta.calls == (CallDelta(0, "f", '{"x": "é"}'),)
    assert (delta.text, delta.analysis, delta.commentary) == ("", "", "")


def test_a_call_without_arguments_has_none() -> None:
    assert calls_of("<|channel|>commentary to=functions.f<|message|><|call|>").calls == (CallDelta(0, "f", "{}"),)


def test_messages_to_others_and_to_nobody_are_commentary() -> None:
    delta = calls_of(
        "<|channel|>commentary to=browser.search<|message|>a<|end|><|start|>assistant<|channel|>commentary<|message|>b"
    )
    assert (delta.commentary, delta.calls) == ("ab", ())


def test_calls_of_the_prompt_are_not_counted_and_one_that_it_has_opened_is_not_the_answers() -> None:
    earlier = '<|start|>assistant to=functions.g<|channel|>commentary json<|message|>{"a"'
    assert calls_of(": 1}", earlier).commentary == ": 1}"
    later = calls_of("<|channel|>commentary to=functions.f<|message|>{}", f"{earlier}: 1}}<|call|><|start|>assistant")
    assert later.calls == (CallDelta(0, "f", "{}"),)


def test_an_answer_ends_at_return_and_call_but_not_at_the_end_of_a_message() -> None:
    ends = {SUBJECT.token_text(token_id) for token_id in SUBJECT.end_ids}
    assert ends == {"<|return|>", "<|call|>", "<|endoftext|>"}
    assert SUBJECT.is_special(SUBJECT.special_ids["<|end|>"])
