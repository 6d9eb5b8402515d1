"""Log probabilities as an engine reports them are for readers what lists of objects were, byte by byte."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcd.events import PackedLogprobs, TokenLogprob
from tasks.dispatch.engine.reported_logprobs import ReportedLogprobs
from tasks.dispatch.engine.token_spellings import TokenSpellings
from tests.worker.logprob_records import TokenLogprobs, read, record

PIECES = [b"a", b" the", b"\xc3", "é".encode(), b'"', b"\\", b"\n\x00", b"", "\u2028".encode(), b"\xff\xfe{}"]
NUM_IDS = 12  # two more than there are tokens

token_ids = st.integers(0, NUM_IDS - 1)
logprobs = st.floats(-(2.0**99), 0.0, width=32)


@st.composite
def reports(draw: st.DrawFn) -> tuple[list[int], int, list[TokenLogprobs]]:
    """The ids of tokens, how many alternatives were asked for, and what is told; sometimes of fewer."""
    num_top = draw(st.integers(0, 4))
    ids, told = draw(st.lists(token_ids, max_size=6)), []
    for _ in ids:
        top = draw(st.lists(token_ids, min_size=draw(st.sampled_from([0, num_top])), max_size=num_top, unique=True))
        told.append(TokenLogprobs(draw(logprobs), tuple(top), tuple(draw(logprobs) for _ in top)))
    return ids, num_top, told


def spelt(token_id: int, told: TokenLogprobs) -> TokenLogprob:
    top = dict(zip(told.top_ids, told.top_logprobs, strict=True))
    pieces = {each: PIECES[each] if each < len(PIECES) else b"" for each in (token_id, *top)}
    return TokenLogprob(token_id, told.logprob, top, pieces)


@settings(max_examples=60)
@given(report=reports())
def test_they_are_what_their_records_say_in_every_form(report: tuple[list[int], int, list[TokenLogprobs]]) -> None:
    ids, num_top, told = report
    reported = ReportedLogprobs(ids, num_top, b"".join(record(each, num_top) for each in told), TokenSpellings(PIECES))
    expected = [spelt(*each) for each in zip(ids, told, strict=True)]
    assert [*reported] == expected
    assert len(reported) == len(ids)
    assert bytes(reported.json()) == msgspec.json.encode(expected)
    packed = msgspec.json.decode(msgspec.json.encode(reported.packed()), type=PackedLogprobs)
    assert packed.unpacked(ids) == expected


def test_one_and_some_of_them_can_be_looked_at() -> None:
    told = [TokenLogprobs(-1.0), TokenLogprobs(-2.0), TokenLogprobs(-3.0)]
    reported = ReportedLogprobs([0, 1, 0], 0, b"".join(record(each, 0) for each in told), TokenSpellings(PIECES))
    assert reported[1] == TokenLogprob(1, -2.0, {}, {1: b" the"})
    assert [each.logprob for each in reported[1:]] == [-2.0, -3.0]
    assert [each.logprob for each in reversed(reported)] == [-3.0, -2.0, -1.0]
    with pytest.raises(IndexError):
        reported[3]


def test_a_number_that_looks_like_no_id_does_no_harm() -> None:
    is_nan = b"\xff" * 4
    records = record(TokenLogprobs(-1.0, (1,), (-0.5,)), 1).replace(record(TokenLogprobs(-0.5), 0), is_nan)
    reported = ReportedLogprobs([0], 1, records, TokenSpellings(PIECES))
    [each] = reported
    assert each.top.keys() == {1} and math.isnan(each.top[1])
    assert bytes(reported.json()) == b'[{"id":0,"logprob":-1.0,"top":{"1":null},"pieces":{"0":"YQ==","1":"IHRoZQ=="}}]'
    assert read(records, 1)[0].top_ids == (1,)
