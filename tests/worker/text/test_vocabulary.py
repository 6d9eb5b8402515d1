"""A vocabulary that cannot be used is refused with the key's name."""

from __future__ import annotations

from typing import Any

import pytest

from orcd.errors import ModelLoadFailed
from tests.worker.text.vocabularies import bpe_metadata, spm_metadata
from worker.text import tokenizer, vocabulary

GOOD = bpe_metadata("a b", bos_token_id=256)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("model", None, "missing"),
        ("model", 3, "string"),
        ("pre", 3, "string"),
        ("tokens", None, "list"),
        ("tokens", [], "not empty"),
        ("tokens", "abc", "list"),
        ("tokens", ["a", 3], "only str"),
        ("tokens", ["a", "b" * 1025], "longer than"),
        ("token_type", [1, 1], "2 entries for 258 tokens"),
        ("token_type", [1.0] * 258, "only int"),
        ("token_type", "1", "list"),
        ("scores", [1.0], "1 entries"),
        ("merges", [["a", "b"]], "only str"),
        ("bos_token_id", ["x" * 1000], "must be the id"),
        ("eos_token_id", True, "True"),
        ("eot_token_id", "1", "'1'"),
        ("add_bos_token", 1, "true or false"),
        ("add_space_prefix", "no", "true or false"),
    ],
)
def test_a_bad_key_is_named(key: str, value: Any, problem: str) -> None:
    metadata = {name: kept for name, kept in GOOD.items() if name != f"tokenizer.ggml.{key}"}
    if value is not None:
        metadata[f"tokenizer.ggml.{key}"] = value
    with pytest.raises(ModelLoadFailed, match=rf"tokenizer\.ggml\.{key}\b.*{problem}"):
        vocabulary.from_metadata(metadata)


def test_the_first_of_several_tokens_that_are_spelt_alike_is_found() -> None:
    metadata = bpe_metadata("a b", control=("<|im_end|>", "<|im_end|>"))
    metadata["tokenizer.ggml.tokens"][ord("q")] = "ab"
    words = vocabulary.from_metadata(metadata)
    assert (words.ids["ab"], words.ids["<|im_end|>"]) == (ord("q"), 257)
    subject = tokenizer.from_metadata(metadata)
    assert subject.encode("ab<|im_end|>", parse_special=True) == [ord("q"), 257]
    assert subject.end_ids == {257, 258} and subject.decode([256, 258]) == "ab<|im_end|>"
    (warning,) = vocabulary.warnings(metadata)
    assert "tokenizer.ggml.tokens holds 2 tokens spelt like others" in warning


@pytest.mark.parametrize(("model", "default"), [("gpt2", None), ("llama", 1)])
@pytest.mark.parametrize("token_id", [2**32 - 1, 5000, -1])
def test_an_id_out_of_range_is_the_default_and_a_warning(model: str, default: int | None, token_id: int) -> None:
    metadata = bpe_metadata("a b") if model == "gpt2" else spm_metadata()
    metadata["tokenizer.ggml.bos_token_id"] = token_id
    assert vocabulary.from_metadata(metadata).bos_id == default
    (warning,) = vocabulary.warnings(metadata)
    assert warning.startswith(f"tokenizer.ggml.bos_token_id is {token_id}, which is no id of 25")


def test_lists_may_be_longer_than_the_vocabulary_and_scores_whole_numbers() -> None:
    metadata = spm_metadata(("a", -2.0))
    metadata["tokenizer.ggml.scores"] = [0] * 259 + [-2, 7]
    metadata["tokenizer.ggml.token_type"] += [1]
    words = vocabulary.from_metadata(metadata)
    assert (words.scores[-1], len(words.types)) == (-2.0, 260)


def test_nothing_is_said_of_a_good_vocabulary_or_of_none() -> None:
    assert vocabulary.warnings(GOOD) == vocabulary.warnings({}) == vocabulary.warnings(spm_metadata()) == []


def test_a_silent_file_has_the_defaults_of_its_kind() -> None:
    spm = vocabulary.from_metadata(spm_metadata())
    assert (spm.bos_id, spm.eos_id, spm.unknown_id) == (1, 2, 0)
    assert (spm.add_bos, spm.add_eos, spm.add_space_prefix) == (True, False, True)
    bpe = vocabulary.from_metadata(bpe_metadata("a b"))
    assert (bpe.bos_id, bpe.eos_id, bpe.unknown_id) == (None, None, None)
    assert (bpe.add_bos, bpe.add_eos, bpe.add_space_prefix) == (False, False, False)
    assert vocabulary.from_metadata(bpe_metadata("a b", pre="llama-bpe", bos_token_id=256)).add_bos
    untyped = {key: value for key, value in GOOD.items() if key != "tokenizer.ggml.token_type"}
    assert set(vocabulary.from_metadata(untyped).types) == {vocabulary.TokenType.NORMAL}


def test_where_neither_a_bos_is_named_nor_one_asked_for_texts_begin_with_none() -> None:
    assert tokenizer.from_metadata(bpe_metadata("a b", pre="falcon3")).encode("ab") == [256]
    with pytest.raises(ModelLoadFailed, match=r"add_bos_token is set but tokenizer\.ggml\.bos_token_id is missing"):
        tokenizer.from_metadata(bpe_metadata("a b", pre="falcon3", add_bos_token=True))
