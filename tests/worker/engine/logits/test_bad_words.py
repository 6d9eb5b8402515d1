from __future__ import annotations

import numpy as np
import pytest

from orcd.errors import OrcdError
from tests.worker.engine.bracket_constraint import CLOSE, BracketConstraint
from worker.engine.logits.bad_words import BadWords
from worker.engine.token_constraint import Asked, Drawn, TokenMask, take_alone

VOCAB_SIZE = 41


def words(*words: tuple[int, ...], grammar: BracketConstraint | None = None) -> BadWords:
    return BadWords(words, grammar, vocab_size=VOCAB_SIZE)


def allowed(constraint: BadWords, num_left: int = 9) -> set[int]:
    mask = np.zeros(2, np.uint32)
    constraint.write_mask(mask.data, num_left)
    return set(np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little")).tolist())


def banned(constraint: BadWords) -> set[int]:
    return set(range(VOCAB_SIZE)) - allowed(constraint)


def test_the_last_id_of_a_word_is_banned_where_the_output_ends_with_the_others():
    constraint = words((7,), (1, 2), (1, 1, 40), (3, 1, 5))
    expected = {(): {7}, (1,): {7, 2}, (1, 1): {7, 2, 40}, (3, 1): {7, 2, 5}, (1, 3): {7}, (3, 1, 1): {7, 2, 40}}
    for ids, ids_banned in expected.items():
        state = constraint.copy()
        for token_id in ids:
            assert state.take(token_id, 9) == token_id
        assert banned(state) == ids_banned, ids


def test_ids_beyond_the_vocabulary_are_not_allowed():
    assert allowed(words((1, 2))) == set(range(VOCAB_SIZE))


def test_copies_go_their_own_ways_and_a_resumed_one_is_as_it_was():
    constraint = words((1, 2, 3))
    constraint.take(1, 9)
    other = constraint.copy()
    other.take(2, 8)
    constraint.take(5, 8)
    assert (banned(constraint), banned(other)) == (set(), {3})
    resumed = words((1, 2, 3))
    resumed.restore([9, 9, 1, 2], 9)
    assert banned(resumed) == {3}
    assert not resumed.is_complete


def test_beside_a_grammar_both_are_kept_to():
    constraint = words((2,), (4, 6), grammar=BracketConstraint(9))
    constraint.take(4, 9)
    assert allowed(constraint, 8) == set(range(0, 64, 2)) - {2, 6}
    other = constraint.copy()
    other.take(8, 8)
    assert allowed(other, 7) == {*range(0, 64, 2), CLOSE} - {2}
    assert allowed(constraint, 8) == set(range(0, 64, 2)) - {2, 6}, "the copy's bracket is open here, too"


def test_it_is_complete_with_its_grammar_also_after_a_restart():
    constraint = words((1, 2), grammar=BracketConstraint(2))
    constraint.restore([2, 4], 9)
    assert constraint.is_complete
    assert not words((1, 2), grammar=BracketConstraint(2)).is_complete


def test_what_a_grammar_puts_in_the_place_of_a_drawn_id_must_not_end_a_word():
    constraint = words((4, 2), grammar=BracketConstraint(9))
    constraint.take(4, 2)
    with pytest.raises(OrcdError, match="bad_words"):
        constraint.take(8, 1)  # for which the grammar takes 2


def mask_of(constraint: BracketConstraint | BadWords, num_left: int) -> TokenMask:
    words = np.zeros(2, np.uint32)
    constraint.write_mask(words.data, num_left)
    return TokenMask(words.tobytes())


class BracketBatch:
    """Asks them one after the other, and counts how often it is asked."""

    def __init__(self) -> None:
        self.num_calls = 0

    def masks(self, asked: list[Asked]) -> list[TokenMask | int | Exception]:
        self.num_calls += 1
        return [mask_of(*each) for each in asked]

    def take(self, drawn: list[Drawn]) -> list[int | Exception]:
        self.num_calls += 1
        return [take_alone(each) for each in drawn]


def batched(batch: BracketBatch, *ids: tuple[int, ...]) -> BadWords:
    grammar = BracketConstraint(9)
    grammar.batch = batch
    return words(*ids, grammar=grammar)


def test_those_with_grammars_that_are_asked_together_are_asked_together_and_say_what_each_says_alone():
    batch, ids = BracketBatch(), [((4, 2),), ((2,), (4, 6)), ((4, 6, 8),)]
    together, alone = [batched(batch, *each) for each in ids], [batched(batch, *each) for each in ids]
    assert len({each.batch for each in together}) == 1
    for token_id in (4, 6, 8):
        drawn = [(each, token_id, 9 - token_id // 2) for each in together]
        batch.num_calls = 0
        assert [str(each) for each in together[0].batch.take(drawn)] == [
            str(take_alone((each, token_id, 9 - token_id // 2))) for each in alone
        ]
        assert batch.num_calls == 1
        num_left = 8 - token_id // 2
        masks = together[0].batch.masks([(each, num_left) for each in together])
        assert batch.num_calls == 2
        assert [mask.words for mask in masks] == [mask_of(each, num_left).words for each in alone]


def test_one_whose_words_leave_nothing_of_what_its_grammar_allows_fails_alone():
    batch = BracketBatch()
    together = [batched(batch, *[(each,) for each in range(2, 64, 2)], (0,)), batched(batch, (2,))]
    error, mask = together[0].batch.masks([(each, 9) for each in together])
    assert isinstance(error, OrcdError) and isinstance(mask, TokenMask)


def test_an_id_that_alone_may_come_is_left_where_it_ends_no_word():
    batch = BracketBatch()
    batch.masks = lambda asked: [2 for _ in asked]
    together = [batched(batch, (2,)), batched(batch, (4,))]
    error, only_id = together[0].batch.masks([(each, 9) for each in together])
    assert isinstance(error, OrcdError) and only_id == 2


def test_without_a_grammar_it_is_asked_alone():
    assert words((2, 4)).batch is None
    assert words((2, 4), grammar=BracketConstraint(9)).batch is None
