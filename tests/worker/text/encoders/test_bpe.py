"""Byte-level BPE: where words are cut, how bytes are spelt, what is refused."""

from __future__ import annotations

import pytest

from orcd.errors import ModelLoadFailed
from tests.worker.text.vocabularies import bpe_metadata
from worker.text import tokenizer, vocabulary
from worker.text.encoders import bpe


def words(pre: str, text: str) -> list[str]:
    """Where the pre-tokenizer cuts."""
    metadata = bpe_metadata("a b", pre=pre)
    encoder = bpe.build(vocabulary.from_metadata(metadata))
    assert encoder.pre_tokenizer is not None
    return [bpe.piece(word).decode() for word, _ in encoder.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "text", "cut"),
    [
        ("gpt-2", "It's 1234  x!", ["It", "'s", " 1234", " ", " x", "!"]),
        ("gpt-2", "IT'S\n\n x", ["IT", "'", "S", "\n\n", " x"]),
        ("qwen2", "IT'S 1234", ["IT", "'S", " ", "1", "2", "3", "4"]),
        ("qwen2", "a.b\r\n\n  c", ["a", ".b", "\r\n\n", " ", " c"]),
        ("llama-bpe", "IT'S 1234", ["IT", "'S", " ", "123", "4"]),
        ("llama-bpe", "!?\nx", ["!?\n", "x"]),
        ("gpt-4o", "camelCaseIT'S 1234", ["camel", "Case", "IT'S", " ", "123", "4"]),
        ("gpt-4o", "a//\nb", ["a", "//\n", "b"]),
        ("gpt-4o", "नमस्ते ไทย", ["नमस्ते", " ไทย"]),
        ("tekken", "camelCaseIT'S 12", ["camel", "Case", "IT", "'S", " ", "1", "2"]),
        ("smollm", "It's 12", ["It", "'s", " ", "1", "2"]),
        ("default", "It's 12345<=>", ["It", "'", "s", " ", "123", "45", "<=>"]),
    ],
)
def test_words_are_cut_where_the_pre_tokenizer_says(pre: str, text: str, cut: list[str]) -> None:
    assert words(pre, text) == cut


def test_a_word_in_the_vocabulary_is_one_token_where_merges_are_ignored() -> None:
    metadata = bpe_metadata("a b", "b c", "c d", "ab cd", pre="qwen2")  # ids from 256 on
    metadata["tokenizer.ggml.merges"].remove("ab cd")
    assert tokenizer.from_metadata(metadata).encode("abcd") == [256, 258]
    llama = metadata | {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False}
    assert tokenizer.from_metadata(llama).encode("abcd") == [259]


def test_a_merge_that_is_listed_twice_has_its_first_rank() -> None:
    metadata = bpe_metadata("a b", "b c")
    metadata["tokenizer.ggml.merges"].append("a b")
    assert tokenizer.from_metadata(metadata).encode("abc") == [256, ord("c")]


def test_no_space_is_put_in_front_whatever_the_file_says() -> None:
    assert tokenizer.from_metadata(bpe_metadata("a b", add_space_prefix=True)).encode("ab") == [256]


def test_many_tokens_are_spelt_as_one_is() -> None:
    spelt = [token for token in map(chr, range(0x21, 0x250)) if token in bpe.BYTE_OF_LETTER]
    tokens = [first + second for first in spelt[:40] for second in ("", *spelt)]
    tokens[5], tokens[-7] = "<▁end▁>", ""
    assert bpe.pieces(tokens) == list(map(bpe.piece, tokens))
    assert bpe.pieces([]) == []


def test_every_byte_has_its_letter() -> None:
    assert sorted(bpe.BYTE_OF_LETTER.values()) == list(range(256))
    assert bpe.piece("ĠÃ©Ċ") == " é\n".encode()
    assert bpe.piece("a▁ ") == "a▁ ".encode()


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"pre": "martian"}, r"tokenizer\.ggml\.pre 'martian'.*known: .*qwen2.*--tokenizer"),
        ({"merges": None}, r"tokenizer\.ggml\.merges"),
        ({"merges": ["ab"]}, r"tokenizer\.ggml\.merges"),
        ({"merges": ["a b c"]}, r"tokenizer\.ggml\.merges"),
        ({"merges": ["a "]}, r"tokenizer\.ggml\.merges"),
        ({"merges": ["a c"]}, r"tokenizer\.ggml\.merges does not fit tokenizer\.ggml\.tokens"),
        ({"merges": ["a xyz"]}, r"tokenizer\.ggml\.merges does not fit tokenizer\.ggml\.tokens"),
    ],
)
def test_what_cannot_be_built_is_refused_with_the_key(changes: dict[str, object], problem: str) -> None:
    metadata = bpe_metadata("a b") | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    with pytest.raises(ModelLoadFailed, match=problem):
        tokenizer.from_metadata(metadata)
