"""Names of pre-tokenizers: where they cut, which look words up, which begin with BOS."""

from __future__ import annotations

import pytest

from tests.worker.text.vocabularies import bpe_metadata
from worker.text import tokenizer, vocabulary
from worker.text.encoders import bpe
from worker.text.encoders.pre_tokenizers import PRE_TOKENIZERS


def words(pre: str, text: str) -> list[str]:
    """Where the pre-tokenizer cuts."""
    encoder = bpe.build(vocabulary.from_metadata(bpe_metadata("a b", pre=pre)))
    assert encoder.pre_tokenizer is not None
    return [bpe.piece(word).decode() for word, _ in encoder.pre_tokenizer.pre_tokenize_str(text)]


@pytest.mark.parametrize(
    ("pre", "text", "cut"),
    [
        ("qwen35", "IT'S e\u0301te\u0301 12", ["IT", "'S", " e\u0301te\u0301", " ", "1", "2"]),
        ("qwen2", "e\u0301te\u0301", ["e", "\u0301te", "\u0301"]),
        ("qwen35", "!\u0301?\n", ["!\u0301", "?\n"]),
        ("dbrx", "IT'S 12345", ["IT", "'S", " ", "123", "45"]),
        ("glm4", "IT'S 12345", ["IT", "'S", " ", "123", "45"]),
        ("lfm2", "IT'S 12345", ["IT", "'S", " ", "123", "45"]),
        ("refact", "It's 12", ["It", "'s", " ", "1", "2"]),
        ("deepseek-v3", "a1234 b.c 東京カ x", ["a", "123", "4", " b", ".c", " ", "東京カ", " x"]),
        ("deepseek-v3", "e\u0301t !?\n\n(x)", ["e\u0301t", " !?\n\n", "(x", ")"]),
        ("deepseek-coder", "a1 b.c\n東京", ["a", "1", " b", ".", "c", "\n", "東京"]),
        ("deepseek-llm", "ab12 c.\n東京  ", ["ab", "12", " c", ".", "\n", "東京", "  "]),
        ("deepseek-llm", "éß \u10d0b", ["éß", " ", "\u10d0", "b"]),
        ("hunyuan-dense", "a1234", ["a", "123", "4"]),
        ("grok-2", "a12", ["a", "1", "2"]),
        ("minimax-m2", "camelCase 1234", ["camel", "Case", " ", "123", "4"]),
    ],
)
def test_words_are_cut_where_the_name_says(pre: str, text: str, cut: list[str]) -> None:
    assert words(pre, text) == cut


def test_names_stand_for_one_pre_tokenizer_each() -> None:
    assert len(PRE_TOKENIZERS) == 52
    for alike in (
        ("llama-bpe", "falcon3", "lfm2", "pixtral"),
        ("dbrx", "smaug-bpe"),
        ("smollm", "refact", "command-r"),
    ):
        assert len({PRE_TOKENIZERS[name] for name in alike}) == 1


@pytest.mark.parametrize(
    ("pre", "ids"),
    [
        ("llama-bpe", [260, 259]),
        ("lfm2", [260, 259]),
        ("tekken", [260, 259]),
        ("glm4", [259]),
        ("dbrx", [256, 258]),
        ("qwen35", [256, 258]),
    ],
)
def test_some_look_words_up_and_some_begin_with_bos(pre: str, ids: list[int]) -> None:
    metadata = bpe_metadata("a b", "b c", "c d", "ab cd", pre=pre, bos_token_id=260)
    metadata["tokenizer.ggml.merges"].remove("ab cd")
    assert tokenizer.from_metadata(metadata).encode("abcd") == ids


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_every_pre_tokenizer_keeps_all_text(pre: str) -> None:
    text = "It's 3,14 €\n\n\tx_y éÉ 東京 \u0e44\u0e17\u0e22 😀  \r\n \u10d0\u2d00 $^"
    assert "".join(words(pre, text)) == text
