"""Log probabilities of an engine become those of events, in order."""

from __future__ import annotations

from orcd.events import TokenLogprob
from tasks.dispatch.engine.held_logprobs import HeldLogprobs
from worker.contract import TokenLogprobs, TokenOutput

PIECES = [b"%d" % token_id for token_id in range(10)]
FIRST, SECOND = TokenLogprobs(-0.5, (7, 8), (-0.5, -1.0)), TokenLogprobs(-2.0)


def test_each_token_is_spelt_with_its_alternatives_and_taken_once() -> None:
    held = HeldLogprobs()
    held.add(TokenOutput("r", 0, (8, 9), None, (FIRST, SECOND)), PIECES)
    held.add(TokenOutput("r", 0, (3,), None, (SECOND,)), PIECES)
    assert held.take(1) == ([TokenLogprob(8, -0.5, {7: -0.5, 8: -1.0}, {7: b"7", 8: b"8"})], None)
    taken, _ = held.take(5)
    assert taken == [TokenLogprob(9, -2.0, {}, {9: b"9"}), TokenLogprob(3, -2.0, {}, {3: b"3"})]
    assert held.take(1) == (None, None)


def test_the_prompts_come_with_the_first_token_and_the_first_of_them_is_none() -> None:
    held = HeldLogprobs([4, 8, 9])
    held.add(TokenOutput("r", 0, (5,), prompt_logprobs=(FIRST, SECOND)), PIECES)
    held.add(TokenOutput("r", 0, (5,)), PIECES)
    expected = [
        None,
        TokenLogprob(8, -0.5, {7: -0.5, 8: -1.0}, {7: b"7", 8: b"8"}),
        TokenLogprob(9, -2.0, {}, {9: b"9"}),
    ]
    assert held.take(1) == (None, expected)
    assert held.take(1) == (None, None)


def test_a_prompt_of_one_token_has_one_that_is_none() -> None:
    held = HeldLogprobs([4])
    held.add(TokenOutput("r", 0, (5,), prompt_logprobs=()), PIECES)
    assert held.take(1) == (None, [None])


def test_an_id_behind_the_vocabulary_is_spelt_with_nothing() -> None:
    held = HeldLogprobs()
    held.add(TokenOutput("r", 0, (11,), None, (FIRST,)), PIECES)
    assert held.take(1) == ([TokenLogprob(11, -0.5, {7: -0.5, 8: -1.0}, {11: b"", 7: b"7", 8: b"8"})], None)
