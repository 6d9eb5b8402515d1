"""What must not be drawn for a word: with the vocabularies of real models' kinds."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from orcd.errors import InvalidRequest
from worker.text.bad_word_ids import bad_word_ids

IDS = {"a": (1,), " a": (2,), "bc": (3, 4), " bc": (5, 4), "de": (3, 6), " de": (7,), "f": (8,), " f": (9, 8), "": ()}


class TableTokenizer:
    """Knows the ids of a few texts."""

    def __init__(self, ids: Mapping[str, tuple[int, ...]] = IDS) -> None:
        self.ids = ids

    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        assert parse_special and not add_special
        return list(self.ids[text])


@pytest.mark.parametrize(
    ("words", "ids"),
    [
        ([], ()),
        (["a"], ((1,), (2,))),
        (["bc"], ((3, 4), (5, 4))),
        (["de"], ((3, 6),)),  # after a space it is another number of ids
        (["f"], ((8,),)),
        ([" a"], ((1,), (2,))),
        (["bc", "a", " bc"], ((3, 4), (5, 4), (1,), (2,))),
    ],
)
def test_a_word_is_its_ids_and_those_after_a_space_where_these_are_another_token(words, ids) -> None:
    assert bad_word_ids(words, TableTokenizer()) == ids


def test_after_a_space_that_is_a_token_of_its_own_it_is_the_same_word() -> None:
    assert bad_word_ids(["bc"], TableTokenizer({"bc": (3, 4), " bc": (3, 5)})) == ((3, 4),)


def test_space_alone_is_taken_as_it_is() -> None:
    assert bad_word_ids(["\n"], TableTokenizer({"\n": (1,), " \n": (2,)})) == ((1,), (2,))


def test_a_word_without_ids_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"bad_words: .*no token"):
        bad_word_ids(["x"], TableTokenizer({"x": (), " x": ()}))
