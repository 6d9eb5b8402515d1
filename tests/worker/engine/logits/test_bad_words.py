from __future__ import annotations

import numpy as np
import pytest

from orcd.errors import OrcdError
from tests.worker.engine.bracket_constraint import CLOSE, BracketConstraint
from worker.engine.logits.bad_words import BadWords

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
