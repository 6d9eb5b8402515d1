"""BPE on characters, as Gemma 4 has it: spaces within tokens, lines, bytes."""

from __future__ import annotations

from typing import Any

import pytest

from orcd.errors import ModelLoadFailed
from tests.worker.text.vocabularies import spm_metadata
from worker.text import tokenizer

TOKENS = ("▁", "a", "b", "▁a", "ab", "▁ab", "a▁b", "\n", "\n\n", "\n\n\n", "a\n", "▁b")  # ids 259 to 270


def metadata(*merges: str, **keys: Any) -> dict[str, Any]:
    """Special tokens and bytes, then ``TOKENS``."""
    words = spm_metadata(*((token, 0.0) for token in TOKENS))
    return words | {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.merges": list(merges or ("a b", "▁ ab", "▁ a", "a ▁b", "a \n")),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.unknown_token_id": 0,
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }


def encode(text: str, *merges: str) -> list[int]:
    return tokenizer.from_metadata(metadata(*merges)).encode(text, add_special=False)


def test_the_first_merge_of_the_list_goes_first_and_crosses_spaces() -> None:
    assert encode("ab ab") == [263, 264]
    assert encode("a a") == [260, 262]
    assert encode("a b") == [260, 259, 261]
    assert encode("a b", "▁ b", "a ▁b") == [265]


def test_nothing_crosses_the_end_of_a_line() -> None:
    assert encode("a\nb") == [260, 266, 261]


def test_a_row_of_newlines_is_looked_up() -> None:
    assert encode("\n\n\na") == [268, 260]
    assert encode("a\n\n b") == [260, 267, 259, 261]
    assert encode("\n\n\n\n") == [267, 267]


def test_a_character_without_a_token_becomes_bytes_and_comes_back() -> None:
    subject = tokenizer.from_metadata(metadata())
    assert subject.encode("é", add_special=False) == [0xC3 + 3, 0xA9 + 3]
    assert subject.decode(subject.encode("a é\n b", add_special=False)) == "a é\n b"


def test_texts_begin_with_bos_even_where_the_file_says_no() -> None:
    assert tokenizer.from_metadata(metadata(add_bos_token=False)).encode("a") == [1, 260]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"merges": []}, r"tokenizer\.ggml\.merges"),
        ({"merges": ["a c"]}, r"tokenizer\.ggml\.merges does not fit"),
        ({"unknown_token_id": None, "tokens": ["a", "b", "ab"]}, r"unknown_token_id is missing"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_key(changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelLoadFailed, match=problem):
        tokenizer.from_metadata(metadata(**changes))
