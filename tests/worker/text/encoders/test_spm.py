"""SentencePiece-style BPE: merges by score, byte fallback, spaces."""

from __future__ import annotations

import math

import pytest

from orcd.errors import ModelLoadFailed
from tests.worker.text.vocabularies import spm_metadata
from worker.text import tokenizer
from worker.text.encoders import spm

LETTERS = (("▁", -9.0), ("a", -9.0), ("b", -9.0), ("c", -9.0))  # ids 259 to 262


def encode(text: str, *scored: tuple[str, float], **keys: bool) -> list[int]:
    metadata = spm_metadata(*LETTERS, *scored, **{"add_bos_token": False, **keys})
    return tokenizer.from_metadata(metadata).encode(text)


def test_the_best_score_merges_first_wherever_it_is() -> None:
    assert encode("abc", ("ab", -2.0), ("bc", -1.0)) == [259, 260, 264]
    assert encode("abc", ("ab", -1.0), ("bc", -2.0)) == [259, 263, 262]


def test_equals_merge_from_the_left() -> None:
    assert encode("aaa", ("aa", -1.0)) == [259, 263, 260]


def test_a_token_can_be_made_of_any_two_that_make_it() -> None:
    tokens = (("▁a", -1.0), ("bc", -2.0), ("▁abc", -3.0))
    assert encode("abc", *tokens) == [265]


def test_a_token_that_no_two_others_make_is_never_found() -> None:
    assert encode("abc", ("abc", -1.0)) == [259, 260, 261, 262]


def test_a_character_without_a_token_becomes_bytes() -> None:
    assert encode("é") == [259, 0xC3 + 3, 0xA9 + 3]


def test_control_tokens_are_never_merged_from_text() -> None:
    assert 1 not in encode("<s>", ("<", -1.0), ("s>", -1.0), ("s", -1.0), (">", -1.0))


def test_the_space_in_front_can_be_switched_off() -> None:
    assert encode("a b") == [259, 260, 259, 261]
    assert encode("a b", add_space_prefix=False) == [260, 259, 261]
    assert encode("") == []


def test_pieces_have_spaces_and_bytes() -> None:
    assert spm.piece("▁a▁") == b" a "
    assert spm.piece("<0xC3>") == b"\xc3"
    assert spm.piece("<0xC3> ") == b"<0xC3> "


@pytest.mark.parametrize("scores", [None, [math.nan] * 263])
def test_without_scores_nothing_can_be_built(scores: list[float] | None) -> None:
    metadata = spm_metadata(*LETTERS) | {"tokenizer.ggml.scores": scores}
    with pytest.raises(ModelLoadFailed, match=r"tokenizer\.ggml\.scores"):
        tokenizer.from_metadata(metadata)
