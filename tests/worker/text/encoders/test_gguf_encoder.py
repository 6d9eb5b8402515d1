"""Special tokens, plain text and what stands around them, put together."""

from __future__ import annotations

import pytest

from orcd.errors import ModelLoadFailed
from tests.worker.text.vocabularies import bpe_metadata, spm_metadata
from worker.text import tokenizer


def test_text_after_a_special_token_begins_with_a_space_too() -> None:
    subject = tokenizer.from_metadata(spm_metadata(("▁", -1.0), ("a", -2.0)))
    assert subject.encode("a<s>a</s>", parse_special=True) == [1, 259, 260, 1, 259, 260, 2]
    assert subject.encode("</s>", parse_special=True, add_special=False) == [2]


def test_an_unused_token_has_no_text_and_a_user_defined_one_its_own() -> None:
    metadata = bpe_metadata("a b", control=("<pad>", "Ġx", "<|im_end|>"))
    metadata["tokenizer.ggml.token_type"][257:] = [5, 4, 3]
    subject = tokenizer.from_metadata(metadata)
    assert [subject.token_bytes(token_id) for token_id in (256, 257, 258, 259)] == [
        b"ab",
        b"",
        "Ġx".encode(),
        b"<|im_end|>",
    ]


@pytest.mark.parametrize("model", ["bert", "t5", ""])
def test_an_unknown_kind_of_tokenizer_is_refused(model: str) -> None:
    with pytest.raises(ModelLoadFailed, match=rf"tokenizer\.ggml\.model '{model}'.*gpt2, llama.*--tokenizer"):
        tokenizer.from_metadata(bpe_metadata("a b", model=model))


@pytest.mark.parametrize("name", ["bos", "eos"])
def test_a_token_that_is_to_be_added_must_be_named(name: str) -> None:
    with pytest.raises(ModelLoadFailed, match=rf"tokenizer\.ggml\.{name}_token_id is missing"):
        tokenizer.from_metadata(bpe_metadata("a b", **{f"add_{name}_token": True}))
