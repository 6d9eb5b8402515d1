"""Log probabilities of an engine become those of events, in order."""

from __future__ import annotations

import pytest

from orcd.events import Token, TokenLogprob
from tasks.dispatch.engine.held_logprobs import HeldLogprobs, LogprobFields
from tasks.dispatch.engine.token_spellings import TokenSpellings
from tasks.dispatch.prompt_encoder import Prompt
from tests.worker.logprob_records import TokenLogprobs, record
from worker.contract import Sampling, TokenOutput

SPELLINGS = TokenSpellings([b"%d" % token_id for token_id in range(10)])
FIRST, SECOND = TokenLogprobs(-0.5, (7, 8), (-0.5, -1.0)), TokenLogprobs(-2.0)
SPELT = {
    8: TokenLogprob(8, -0.5, {7: -0.5, 8: -1.0}, {7: b"7", 8: b"8"}),
    9: TokenLogprob(9, -2.0, {}, {9: b"9"}),
    3: TokenLogprob(3, -2.0, {}, {3: b"3"}),
}

PACKS = pytest.mark.parametrize("packs", [False, True], ids=["lists", "packed"])


def held_for(*prompt_ids: int, packs: bool) -> HeldLogprobs:
    sampling = Sampling(max_tokens=9, logprobs=2, prompt_logprobs=2)

    def no_text() -> None:
        raise AssertionError

    return HeldLogprobs(Prompt([*prompt_ids], sampling, no_text, SPELLINGS), packs=packs)  # type: ignore[arg-type]


def records(*told: TokenLogprobs) -> bytes:
    return b"".join(record(each, 2) for each in told)


def read(ids: list[int], fields: LogprobFields) -> Token:
    """The event as readers have it."""
    return Token("", 1, ids, **fields).unpacked()


@PACKS
def test_each_token_is_spelt_with_its_alternatives_and_taken_once(packs: bool) -> None:
    held = held_for(1, packs=packs)
    held.add(TokenOutput("r", 0, (8, 9), None, records(FIRST, SECOND)))
    held.add(TokenOutput("r", 0, (3,), None, records(SECOND)))
    fields = held.take([8])
    assert fields.keys() == {"packed_logprobs" if packs else "logprobs"}
    assert read([8], fields).logprobs == [SPELT[8]]
    assert read([9, 3], held.take([9, 3])).logprobs == [SPELT[9], SPELT[3]]
    assert held.take([1]) == {}
    taken = held.taken([1, 8, 9, 3])
    assert (None if taken is None else [*taken]) == ([SPELT[8], SPELT[9], SPELT[3]] if packs else None)


@PACKS
def test_what_is_forgotten_comes_again(packs: bool) -> None:
    held = held_for(1, 8, packs=packs)
    held.add(TokenOutput("r", 0, (8, 9), None, records(FIRST, FIRST), prompt_logprobs=records(SECOND)))
    held.forget_held()
    held.add(TokenOutput("r", 0, (9,), None, records(SECOND)))
    event = read([9], held.take([9]))
    assert (event.logprobs, event.prompt_logprobs) == ([SPELT[9]], None)


@PACKS
def test_the_prompts_come_with_the_first_token_and_the_first_of_them_is_none(packs: bool) -> None:
    held = held_for(4, 8, 9, packs=packs)
    held.add(TokenOutput("r", 0, (5,), prompt_logprobs=records(FIRST, SECOND)))
    held.add(TokenOutput("r", 0, (5,)))
    fields = held.take([5])
    assert fields.keys() == {"packed_prompt_logprobs" if packs else "prompt_logprobs", "prompt_start"}
    assert fields["prompt_start"] == b"4", "the first one has no entry to be spelt in"
    assert read([5], fields).prompt_logprobs == held.of_prompt == [None, SPELT[8], SPELT[9]]
    assert held.take([5]) == {}


@PACKS
def test_a_prompt_of_one_token_has_one_that_is_none(packs: bool) -> None:
    held = held_for(4, packs=packs)
    held.add(TokenOutput("r", 0, (5,), prompt_logprobs=b""))
    assert read([5], held.take([5])).prompt_logprobs == [None]


@PACKS
def test_an_id_behind_the_vocabulary_is_spelt_with_nothing(packs: bool) -> None:
    held = held_for(1, packs=packs)
    held.add(TokenOutput("r", 0, (11,), None, records(FIRST)))
    expected = TokenLogprob(11, -0.5, {7: -0.5, 8: -1.0}, {11: b"", 7: b"7", 8: b"8"})
    assert read([11], held.take([11])).logprobs == [expected]
