"""Special tokens: found in prompts, hidden in answers, ends of answers."""

from __future__ import annotations

from typing import Any

import pytest

from orcd.errors import ModelLoadFailed
from tests.worker.text.vocabularies import bpe_metadata, spm_metadata
from worker.text import special_tokens, vocabulary
from worker.text.special_tokens import SpecialTokens
from worker.text.vocabulary import TokenType


def specials(metadata: dict[str, Any], *, types: dict[str, TokenType] | None = None, name: str = "") -> SpecialTokens:
    metadata = metadata | {"general.name": name, "tokenizer.ggml.token_type": [*metadata["tokenizer.ggml.token_type"]]}
    for text, kind in (types or {}).items():
        metadata["tokenizer.ggml.token_type"][metadata["tokenizer.ggml.tokens"].index(text)] = int(kind)
    return special_tokens.from_vocabulary(vocabulary.from_metadata(metadata))


def split(subject: SpecialTokens, text: str, *, parse_special: bool = True) -> list[str | int]:
    return list(subject.split(text, parse_special=parse_special))


CONTROL = ("<x>", "<xy>", "<|im_end|>")  # ids 257, 258, 259 after 256 bytes and one merge


def test_text_is_cut_at_special_tokens() -> None:
    subject = specials(bpe_metadata("a b", control=CONTROL))
    assert split(subject, "a<x>b<xy><|im_end|>") == ["a", 257, "b", 258, 259]
    assert split(subject, "") == []
    assert split(subject, "a<x", parse_special=True) == ["a<x"]


def test_control_tokens_are_text_unless_parsed_but_user_defined_ones_never_are() -> None:
    subject = specials(bpe_metadata("a b", control=CONTROL), types={"<x>": TokenType.USER_DEFINED})
    assert split(subject, "<x><xy>", parse_special=False) == [257, "<xy>"]
    assert 257 not in subject.hidden_ids
    assert 258 in subject.hidden_ids


def test_the_longest_of_those_that_begin_together_is_found() -> None:
    subject = specials(bpe_metadata("a b", control=("<a", "<a>b", "<a>")))
    assert split(subject, "<a>b<a>c<a") == [258, 259, "c", 257]


def test_the_file_and_well_known_texts_say_what_ends_an_answer() -> None:
    subject = specials(bpe_metadata("a b", control=CONTROL, eos_token_id=257, eot_token_id=258))
    assert subject.end_ids == {257, 258, 259}
    assert subject.end_ids <= subject.hidden_ids


def test_an_ordinary_token_spelt_like_an_end_is_parsed_but_is_text_in_an_answer() -> None:
    subject = specials(bpe_metadata("a b", control=("</s>",)), types={"</s>": TokenType.NORMAL})
    assert split(subject, "a</s>") == ["a", 257]
    assert split(subject, "a</s>", parse_special=False) == ["a</s>"]
    assert not subject.end_ids
    assert not subject.hidden_ids


@pytest.mark.parametrize("text", ["<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<turn|>"])
@pytest.mark.parametrize("kind", [TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED])
def test_the_end_of_a_turn_is_known_by_its_text_whatever_its_type(text: str, kind: TokenType) -> None:
    subject = specials(bpe_metadata("a b", control=(text,)), types={text: kind})
    assert subject.end_ids == subject.hidden_ids == {257}
    assert split(subject, f"a{text}") == ["a", 257]
    assert split(subject, f"a{text}", parse_special=False) == [f"a{text}"]
    assert subject.control_texts == {text}


def test_who_speaks_next_ends_an_answer_of_glm_and_of_no_other() -> None:
    glm = specials(bpe_metadata("a b", control=("<|user|>", "<|assistant|>", "<|observation|>")))
    assert glm.end_ids == {257, 259}
    assert not specials(bpe_metadata("a b", control=("<|user|>", "<|assistant|>"))).end_ids


def test_gemma_4_has_html_for_text() -> None:
    subject = specials(bpe_metadata("a b", control=("</s>", "<turn|>", "<|tool_response>")))
    assert subject.end_ids == {258, 259}


def test_a_user_defined_end_token_is_a_control_token() -> None:
    subject = specials(bpe_metadata("a b", control=("</s>",)), types={"</s>": TokenType.USER_DEFINED})
    assert split(subject, "</s>", parse_special=False) == ["</s>"]
    assert subject.end_ids == subject.hidden_ids == {257}


def test_phi_3_takes_whitespace_after_special_tokens() -> None:
    metadata = spm_metadata(("<|user|>", 0.0), ("<|endoftext|>", 0.0))
    types = {"<|user|>": TokenType.CONTROL, "<|endoftext|>": TokenType.CONTROL}
    phi = specials(metadata, types=types, name="Phi-3 mini")
    assert split(phi, "<|user|>\n a<|endoftext|> b</s>\t\u2003") == [259, "a", 260, " b", 2, "\u2003"]
    assert split(specials(metadata, types=types), "<|user|>\n a") == [259, "\n a"]


def test_too_many_special_tokens_are_refused() -> None:
    metadata = bpe_metadata("a b", control=tuple(f"<{number}>" for number in range(65537)))
    with pytest.raises(ModelLoadFailed, match=r"tokenizer\.ggml\.token_type"):
        specials(metadata)
