"""The detokenizer's contract: only final text, whole ids, cut at the first stop string, resumable at every delta."""

from __future__ import annotations

import codecs
from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcd.errors import InvalidRequest
from tests.worker.text.vocabularies import (
    HARMONY,
    VECTORS,
    bpe_metadata,
    decoder,
    tokenizer_of,
    vectors_of,
)
from worker.text import tokenizer
from worker.text.detokenizer import Detokenizer, TextDelta
from worker.text.tokenizer import Tokenizer

PIECES = (b"a", b"b", b"ab", b" a", b"aba b", b"\xc3", b"\xa9", b"\xf0\x9f", b"\x98\x80", b"b\xf0", b"", b"\xa9a")
STOP = st.text(st.sampled_from("aab é😀\ufffd"), min_size=1, max_size=4)


@dataclass(frozen=True)
class Stream:
    """Ids as they come in, cut into calls of `feed`."""

    tokenizer: Tokenizer
    ids: list[int]
    stop: list[str]
    cuts: list[int]
    min_tokens: int = 0

    def calls(self, start: int = 0) -> list[list[int]]:
        borders = [start, *(cut for cut in self.cuts if cut > start), len(self.ids)]
        return [self.ids[begin:end] for begin, end in pairwise(borders)]

    def run(self, start: int = 0) -> list[TextDelta]:
        """All deltas of a detokenizer that goes on after the first ``start`` ids, up to the last."""
        detokenizer = Detokenizer(self.tokenizer, self.stop, min_tokens=self.min_tokens)
        detokenizer.restore(self.ids[:start])
        deltas = []
        for ids in self.calls(start):
            deltas.append(detokenizer.feed(ids))
            if deltas[-1].stopped:
                return deltas
        return [*deltas, detokenizer.finish()]

    def expected(self) -> tuple[str, bool]:
        """By definition: the text, cut at the stop string that is complete first behind ``min_tokens`` tokens."""
        text = self.tokenizer.decode(self.ids, skip_special=True)
        if self.min_tokens >= len(self.ids):
            return text, False
        data = self.tokenizer.shown_bytes(self.ids[: self.min_tokens])
        if self.tokenizer.strips_leading_space and self.tokenizer.token_bytes(self.ids[0]).startswith(b" "):
            data = data[1:]
        held_open = len(codecs.getincrementaldecoder("utf-8")("replace").decode(data))
        starts = [(stop, text.find(stop, max(0, held_open - len(stop) + 1))) for stop in self.stop]
        found = [(start + len(stop), start) for stop, start in starts if start >= 0]
        return (text[: min(found)[1]], True) if found else (text, False)


@st.composite
def streams(draw: st.DrawFn) -> Stream:
    subject = decoder(*PIECES, hidden=1, strips_leading_space=draw(st.booleans()))
    # One draw for all ids and one for all cuts: an id at a time takes longer to think up than to detokenize.
    ids = [byte % (len(PIECES) + 1) for byte in draw(st.binary(max_size=12))]
    is_cut = draw(st.integers(0, 2**12 - 1))
    cuts = [cut for cut in range(1, len(ids)) if is_cut >> cut & 1]
    stop, min_tokens = draw(st.lists(STOP, max_size=3)), draw(st.sampled_from([0, 0, 1, 2, 5]))
    return Stream(subject, ids, stop, cuts, min_tokens)


@settings(max_examples=800)
@given(streams())
def test_the_deltas_are_the_whole_text_cut_at_the_first_stop_string(stream: Stream) -> None:
    deltas = stream.run()
    text, stopped = stream.expected()
    assert "".join(delta.text for delta in deltas) == text
    assert deltas[-1].stopped == stopped
    num_ids = sum(delta.num_ids for delta in deltas)
    if stopped:  # the last id is the one that completes the stop string
        before = Detokenizer(stream.tokenizer, stream.stop, min_tokens=stream.min_tokens)
        assert not before.feed(stream.ids[: num_ids - 1]).stopped
    else:
        assert num_ids == len(stream.ids)


@settings(max_examples=500)
@given(streams())
def test_every_delta_holds_the_text_of_its_ids_and_nothing_else(stream: Stream) -> None:
    shown, num_ids = "", 0
    for delta in stream.run():
        shown += delta.text
        num_ids += delta.num_ids
        if not delta.stopped:
            assert shown == stream.tokenizer.decode(stream.ids[:num_ids], skip_special=True)


@settings(max_examples=500)
@given(streams())
def test_a_stream_resumes_at_every_delta_with_the_same_text(stream: Stream) -> None:
    deltas = stream.run()
    num_ids = 0
    for index, delta in enumerate(deltas[:-1], start=1):
        num_ids += delta.num_ids
        rest = stream.run(num_ids)
        assert "".join(delta.text for delta in rest) == "".join(delta.text for delta in deltas[index:])
        assert rest[-1].stopped == deltas[-1].stopped
        assert sum(delta.num_ids for delta in rest) == sum(delta.num_ids for delta in deltas[index:])


@pytest.mark.parametrize("name", VECTORS)
def test_streaming_at_every_split_equals_whole_decoding(name: str) -> None:
    subject = tokenizer_of(name)
    cases = vectors_of(name)["cases"]
    for case in cases[:: 7 if len(cases) > 100 else 1]:
        ids = case["ids"]
        if set(ids) & {*subject.special_ids.values()} and "<|channel|>" in subject.special_ids:
            continue  # channels: tests/worker/text/test_harmony.py
        whole = subject.decode(ids, skip_special=True)
        for cut in range(len(ids) + 1):
            detokenizer = Detokenizer(subject)
            deltas = detokenizer.feed(ids[:cut]), detokenizer.feed(ids[cut:]), detokenizer.finish()
            assert "".join(delta.text for delta in deltas) == whole


def feed_each(detokenizer: Detokenizer, *ids: int) -> list[TextDelta]:
    return [detokenizer.feed([token_id]) for token_id in ids]


def test_a_stop_string_is_found_across_tokens_and_its_beginning_never_shown() -> None:
    detokenizer = Detokenizer(decoder(b"one E", b"N", b"D two"), ["END"])
    assert feed_each(detokenizer, 0, 1, 2) == [TextDelta("", 0), TextDelta("", 0), TextDelta("one ", 3, stopped=True)]
    assert detokenizer.finish() == TextDelta("", 0, stopped=True)


def test_what_turns_out_to_be_no_stop_string_is_shown() -> None:
    detokenizer = Detokenizer(decoder(b"one", b" E", b"N", b" two"), ["END"])
    assert feed_each(detokenizer, 0, 1, 2, 3) == [
        TextDelta("one", 1),
        TextDelta("", 0),
        TextDelta("", 0),
        TextDelta(" EN two", 3),
    ]


def test_what_is_held_back_at_the_end_is_shown() -> None:
    detokenizer = Detokenizer(decoder(b"E", b"N\xe2"), ["END"])
    assert feed_each(detokenizer, 0, 1) == [TextDelta("", 0), TextDelta("", 0)]
    assert detokenizer.finish() == TextDelta("EN\ufffd", 2)


def test_ids_after_the_stop_string_are_ignored() -> None:
    detokenizer = Detokenizer(decoder(b"a", b"b"), ["b"])
    assert detokenizer.feed([0, 1, 0, 0]) == TextDelta("a", 2, stopped=True)


def test_the_first_complete_stop_string_counts_then_the_longest() -> None:
    assert Detokenizer(decoder(b"xabcd"), ["abcd", "bc"]).feed([0]).text == "xa"
    assert Detokenizer(decoder(b"xabcd"), ["bc", "abc"]).feed([0]).text == "x"


def test_a_stop_string_that_is_complete_before_min_tokens_ends_nothing() -> None:
    detokenizer = Detokenizer(decoder(b"one ", b"END"), ["END"], min_tokens=2)
    assert feed_each(detokenizer, 0, 1, 0, 1) == [
        TextDelta("one ", 1),
        TextDelta("END", 1),
        TextDelta("one ", 1),
        TextDelta("", 1, stopped=True),
    ]


def test_a_stop_string_that_begins_before_min_tokens_counts_where_it_is_complete() -> None:
    detokenizer = Detokenizer(decoder(b"EN", b"D"), ["END"], min_tokens=1)
    assert feed_each(detokenizer, 0, 1) == [TextDelta("", 0), TextDelta("", 2, stopped=True)]


def test_tokens_of_an_earlier_owner_count_towards_min_tokens() -> None:
    resumed = Detokenizer(decoder(b"one ", b"END"), ["END"], min_tokens=2)
    resumed.restore([0, 1])
    assert resumed.feed([1]) == TextDelta("", 1, stopped=True)


def test_a_character_is_shown_when_its_last_byte_is_there() -> None:
    detokenizer = Detokenizer(decoder(b"\xf0\x9f", b"\x98", b"\x80!"))
    assert feed_each(detokenizer, 0, 1, 2) == [TextDelta("", 0), TextDelta("", 0), TextDelta("😀!", 3)]


def test_control_tokens_are_released_without_text() -> None:
    detokenizer = Detokenizer(decoder(b"a", hidden=1))
    assert feed_each(detokenizer, 1, 0, 1) == [TextDelta("", 1), TextDelta("a", 1), TextDelta("", 1)]


@pytest.mark.parametrize(("prompt_ids", "text"), [([], "a"), ([1], "a"), ([0], " a"), ([1, 0], " a")])
def test_the_space_in_front_stays_where_the_answer_goes_on_in_a_sentence(prompt_ids: list[int], text: str) -> None:
    subject = decoder(b" a", hidden=1, strips_leading_space=True)
    assert Detokenizer(subject, prompt_ids=prompt_ids).feed([0]).text == text
    resumed = Detokenizer(subject, prompt_ids=prompt_ids)
    resumed.restore([0])
    assert resumed.feed([0]).text == " a"


def test_an_empty_stop_string_is_the_callers_mistake() -> None:
    with pytest.raises(InvalidRequest, match="stop"):
        Detokenizer(decoder(b"a"), ["b", ""])


def test_long_stop_strings_and_long_answers_take_time_in_proportion() -> None:
    subject = tokenizer.from_metadata(bpe_metadata("a a"))
    detokenizer = Detokenizer(subject, ["a" * 100 + "b"])
    deltas = [detokenizer.feed([97]) for _ in range(3000)]
    assert sum(delta.num_ids for delta in deltas) == 3000 - 100


@pytest.mark.parametrize("cuts", [[], [1], [2], [1, 2, 3]])
def test_a_stop_string_can_be_left_in_the_answer(cuts: list[int]) -> None:
    detokenizer = Detokenizer(decoder(b"a st", b"o", b"p it", b"!"), ["stop"], include_stop=True)
    text = ""
    for begin, end in pairwise([0, *cuts, 4]):
        delta = detokenizer.feed([0, 1, 2, 3][begin:end])
        text += delta.text
        if delta.stopped:
            break
    assert (text, delta.stopped) == ("a stop", True)


@pytest.mark.parametrize(("include_stop", "text"), [(False, "<|im_start|>a"), (True, "<|im_start|>a<|im_end|>")])
def test_control_tokens_can_be_spelt_out_and_end_tokens_as_the_stop_strings_they_are(
    include_stop: bool, text: str
) -> None:
    words = tokenizer.from_metadata(bpe_metadata("Q Q", control=("<|im_start|>", "<|im_end|>")))
    ids = words.encode("<|im_start|>a<|im_end|>", parse_special=True)
    detokenizer = Detokenizer(words, include_stop=include_stop, skip_special=False)
    assert detokenizer.feed(ids).text + detokenizer.finish().text == text


def test_channels_are_spelt_out_with_the_other_control_tokens() -> None:
    words = tokenizer.from_metadata(bpe_metadata("Q Q", control=HARMONY))
    text = "<|channel|>analysis<|message|>hm<|end|>"
    delta = Detokenizer(words, skip_special=False).feed(words.encode(text, parse_special=True))
    assert (delta.text, delta.analysis) == (text, "")
