"""Calls and reasoning of every family come out of the detokenizer the same however the answer is cut or resumed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.text.tools.families import ANSWERS, CALLS, TOOLS, Answer
from tests.worker.text.vocabularies import bpe_metadata
from worker.text import tokenizer
from worker.text.detokenizer import Detokenizer, TextDelta
from worker.text.tools.answer_form import AnswerForm
from worker.text.tools.answer_parts import AnswerParts, CallDelta, joined
from worker.text.tools.call_syntax import HERMES

EVERY_ANSWER = pytest.mark.parametrize("answer", ANSWERS.values(), ids=ANSWERS.keys())


def detokenizer_of(answer: Answer, stop: Sequence[str] = ()) -> Detokenizer:
    return Detokenizer(answer.tokenizer, stop, prompt_ids=answer.prompt_ids, form=answer.form)


def run(answer: Answer, ids: Sequence[int], cuts: Iterable[int] = (), start: int = 0) -> Iterator[TextDelta]:
    """The deltas of ``ids`` behind the first ``start``, which an earlier detokenizer has released."""
    detokenizer = detokenizer_of(answer)
    detokenizer.restore(ids[:start])
    for begin, end in pairwise([start, *(cut for cut in cuts if start < cut < len(ids)), len(ids)]):
        yield detokenizer.feed(ids[begin:end])
    yield detokenizer.finish()


def summed(deltas: Iterable[TextDelta]) -> AnswerParts:
    whole = AnswerParts()
    for delta in deltas:
        whole.answer += delta.text
        whole.analysis += delta.analysis
        whole.commentary += delta.commentary
        whole.calls += delta.calls
    return AnswerParts(whole.answer, whole.analysis, whole.commentary, list(joined(whole.calls)))


def expected(answer: Answer) -> AnswerParts:
    return AnswerParts(answer.shown, answer.analysis, "", list(CALLS))


@EVERY_ANSWER
def test_two_calls_are_told_from_text_and_reasoning(answer: Answer) -> None:
    assert summed(run(answer, answer.ids)) == expected(answer)


@EVERY_ANSWER
def test_the_calls_are_the_same_at_every_border_between_tokens(answer: Answer) -> None:
    ids = answer.ids
    assert summed(run(answer, ids, range(len(ids)))) == expected(answer)
    for cut in range(1, len(ids), 7):
        assert summed(run(answer, ids, [cut])) == expected(answer)


@EVERY_ANSWER
def test_an_answer_goes_on_behind_every_delta_as_if_nothing_had_happened(answer: Answer) -> None:
    ids = answer.ids
    deltas = list(run(answer, ids, range(len(ids))))
    borders = [*accumulate(delta.num_ids for delta in deltas)]
    assert borders[-1] == len(ids)
    for index, start in enumerate(borders[:-1], start=1):
        if deltas[index - 1].num_ids and index % 5 == 0:
            assert summed(run(answer, ids, range(0, len(ids), 3), start)) == summed(deltas[index:])


@EVERY_ANSWER
def test_arguments_are_given_as_they_come_in(answer: Answer) -> None:
    deltas = list(run(answer, answer.ids, range(len(answer.ids))))
    names = [call.name for delta in deltas for call in delta.calls if call.name]
    assert names == ["weather", "add_2"], "a name is given once, and whole"
    of_first = [call for delta in deltas for call in delta.calls if call.index == 0]
    is_whole = answer is ANSWERS["hermes, arguments first"] or (answer.syntax and answer.syntax.written != "json")
    assert len(of_first) > 10 or is_whole


@EVERY_ANSWER
def test_a_cut_off_answer_loses_nothing_but_what_stands_around_calls(answer: Answer) -> None:
    ids, whole = answer.ids, expected(answer)
    for end in range(0, len(ids), 3):
        found = summed(run(answer, ids[:end]))
        assert whole.analysis.startswith(found.analysis.rstrip("\n<>/think\ufffd"))
        for call, cut in zip(whole.calls, found.calls, strict=False):
            assert (cut.index, cut.name) == (call.index, call.name)
            assert call.arguments.startswith(cut.arguments.rstrip("\ufffd"))


@EVERY_ANSWER
def test_an_answer_is_all_text_where_control_tokens_are_shown_and_where_there_are_no_tools(answer: Answer) -> None:
    shown = Detokenizer(answer.tokenizer, skip_special=False, form=answer.form).feed(answer.ids)
    assert (shown.calls, shown.analysis) == ((), "")
    form = AnswerForm(answer.syntax, answer.reasoning)
    deltas = Detokenizer(answer.tokenizer, prompt_ids=answer.prompt_ids, form=form).feed(answer.ids)
    assert deltas.calls == ()
    assert '"☔' in (deltas.commentary or deltas.text)


@pytest.mark.parametrize("cut", [*range(1, 22), None])
def test_only_the_answer_is_searched_for_stop_strings(cut: int | None) -> None:
    answer = ANSWERS["hermes, text behind"]
    detokenizer = detokenizer_of(answer, ["all", "weather"])
    ids = answer.ids
    deltas = [detokenizer.feed(ids[:cut])]
    if cut is not None:
        deltas.append(detokenizer.feed(ids[cut:]))
    assert deltas[-1].stopped
    assert summed(deltas) == AnswerParts("\n\nThat is ", calls=list(CALLS))


@EVERY_ANSWER
def test_an_answer_may_end_with_its_first_call_however_it_is_cut_or_resumed(answer: Answer) -> None:
    answer, ids = replace(answer, ends_with_call=True), answer.ids
    before_call = "" if answer.shown.startswith("\n") else answer.shown
    numbers = set()
    for size in (len(ids), 1, 3):
        detokenizer, deltas = detokenizer_of(answer, ["all"]), list[TextDelta]()
        for start in range(0, len(ids), size):
            deltas.append(detokenizer.feed(ids[start : start + size]))
            if deltas[-1].stopped:
                break
            if len(deltas) == 20:
                released = sum(delta.num_ids for delta in deltas)
                detokenizer = detokenizer_of(answer, ["all"])
                detokenizer.restore(ids[:released])
                detokenizer.feed(ids[released : start + size])
        assert deltas[-1].stopped
        assert summed(deltas) == AnswerParts(before_call, answer.analysis, "", [CALLS[0]])
        numbers.add(sum(delta.num_ids for delta in deltas))
    assert len(numbers) == 1, "ids behind the call are not the answer's, however they were dealt out"


SUBJECT = tokenizer.from_metadata(bpe_metadata("< t", "c a", '{ "', control=("<|im_end|>", "<tool_call>")))
SNIPPETS = st.sampled_from(
    (
        "<tool_call>",
        "</tool_call>",
        '{"name": "add_2", "arguments": {',
        '{"arguments": {"a": "}"}, ',
        '"name": "x"}',
        '[{"name": "add_2"}, ',
        "}}",
        "}]",
        '"',
        "\n",
        " ",
        "<",
        "é",
        "text",
    )
)


@settings(max_examples=300)
@given(st.lists(SNIPPETS, max_size=8).map("".join), st.data())
def test_whatever_is_written_comes_out_the_same_in_any_pieces(text: str, data: st.DataObject) -> None:
    ids = SUBJECT.encode(text, parse_special=data.draw(st.booleans()))
    answer = Answer(text, HERMES, SUBJECT)
    deltas = list(run(answer, ids, range(len(ids))))
    cuts = data.draw(st.lists(st.integers(1, max(1, len(ids))), unique=True).map(sorted))
    whole = summed(deltas)
    assert summed(run(answer, ids, cuts)) == whole
    index = data.draw(st.integers(0, len(deltas) - 1))
    start = sum(delta.num_ids for delta in deltas[:index])
    assert summed(run(answer, ids, cuts, start)) == summed(deltas[index:])
    if "{" not in text:
        assert whole.answer.split() == text.split() and not whole.calls


def test_a_log_that_ends_within_a_call_that_was_no_call_yet_goes_on_as_text() -> None:
    """As when the last event of an answer was logged and its end was not: what was held back has been shown."""
    ids = SUBJECT.encode('<tool_call>{"name": "ad', parse_special=True)
    detokenizer = Detokenizer(SUBJECT, form=AnswerForm(HERMES).with_tools(TOOLS))
    detokenizer.restore(ids)
    assert detokenizer.finish() == TextDelta("", 0)


def test_very_long_arguments_and_a_long_wait_for_a_name_take_time_in_proportion() -> None:
    form = AnswerForm(HERMES).with_tools(TOOLS)
    text = "[" * 8_000 + '"\\"' * 8_000
    for before, after in (('"name": "x", "arguments": {"a": ', ""), ('"arguments": {"a": ', "")):
        detokenizer = Detokenizer(SUBJECT, form=form)
        ids = SUBJECT.encode(f"<tool_call>{{{before}{text}{after}", parse_special=True)
        deltas = [detokenizer.feed([token_id]) for token_id in ids] + [detokenizer.finish()]
        assert sum(delta.num_ids for delta in deltas) == len(ids)


def test_half_a_character_before_a_marker_is_shown_as_what_it_is() -> None:
    ids = [*b"\xf0\x9f", *SUBJECT.encode('<tool_call>{"name": "x"}', parse_special=True)]
    deltas = [Detokenizer(SUBJECT, form=AnswerForm(HERMES).with_tools(TOOLS)).feed(ids)]
    assert summed(deltas) == AnswerParts("\ufffd", calls=[CallDelta(0, "x", "{}")])
