"""Text to ids and back: as llama.cpp has it, and what holds for every tokenizer."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orcd.errors import InvalidRequest
from tests.worker.text.vocabularies import (
    VECTORS,
    bpe_metadata,
    decoder,
    needs_kit,
    spm_metadata,
    tokenizer_of,
    vectors_of,
)
from worker.text import tokenizer

SPELLS_SPACES = ("gemma", "small-gemma")
EVERYTHING = st.text(
    st.one_of(
        st.characters(codec="utf-8"),
        st.sampled_from(" \t\n\r\x00\x1f\x85\u00a0\u2003\u3000▁é😀"),
        st.characters(min_codepoint=0x10000, max_codepoint=0x10FFFF),
    ),
    max_size=60,
)


@pytest.mark.parametrize("name", VECTORS)
def test_every_vector_of_llama_cpp_is_met(name: str) -> None:
    vectors, subject = vectors_of(name), tokenizer_of(name)
    for case in vectors["cases"]:
        ids = subject.encode(case["text"], add_special=case["add_special"], parse_special=case["parse_special"])
        assert ids in (case["ids"], case.get("ids_hf")), case["text"]
        # In some vocabularies llama.cpp takes away a space before a full stop; here the text itself comes back.
        assert subject.decode(case["ids"]) in (case["detokenized"], case["text"]), case["text"]
    for case in vectors.get("official_vectors", ()):
        assert subject.encode(case["text"], add_special=False) == case["ids"], case["text"]
    for case in vectors.get("pieces", ()):
        assert subject.token_bytes(case["id"]).hex() == case["piece_hex"]
    assert subject.vocab_size == vectors["n_vocab"]
    assert subject.eos_id == vectors["eos"]


@needs_kit
def test_the_vectors_of_qwen35_are_met_by_qwen2s_vocabulary() -> None:
    subject, vectors = tokenizer_of("qwen35-official"), vectors_of("qwen35-official")["official_vectors"]
    for case in vectors:
        assert subject.encode(case["text"], add_special=False) == case["ids"], case["text"]


@settings(max_examples=100)
@given(text=EVERYTHING)
def test_what_was_encoded_decodes_to_itself(text: str) -> None:
    """Each example is one for all vocabularies: to think one up takes longer than to try it."""
    for name in VECTORS:
        subject = tokenizer_of(name)
        # SentencePiece spells a space "▁": there the two come back as the same.
        expected = text.replace("▁", " ") if name.startswith(SPELLS_SPACES) or subject.strips_leading_space else text
        assert subject.decode(subject.encode(text, add_special=False)) == expected, name


@pytest.mark.parametrize("metadata", [bpe_metadata("a b"), spm_metadata(("▁", -1.0), ("a", -2.0))])
def test_a_lone_surrogate_is_the_callers_mistake(metadata: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match="surrogate at character 1"):
        tokenizer.from_metadata(metadata).encode("a\ud800")


def test_bytes_that_are_not_utf8_decode_to_replacement_characters() -> None:
    assert decoder(b"a", b"\xff", b"\xe2\x82").decode([0, 1, 0, 2]) == "a\ufffda\ufffd"


def test_only_the_first_space_is_taken_away_and_only_where_the_encoder_adds_it() -> None:
    pieces = (b" a", b"  b")
    assert decoder(*pieces, strips_leading_space=True).decode([0, 0]) == "a a"
    assert decoder(*pieces, strips_leading_space=True).decode([1]) == " b"
    assert decoder(*pieces).decode([0, 0]) == " a a"


def test_control_tokens_are_spelt_out_or_skipped() -> None:
    subject = decoder(b" a", hidden=1, strips_leading_space=True)
    assert subject.decode([1, 0]) == "<control> a"
    assert subject.decode([1, 0], skip_special=True) == "a"
    assert subject.is_special(1)
    assert not subject.is_special(0)


def test_ids_beyond_the_vocabulary_have_no_text() -> None:
    subject = decoder(b"a")
    assert subject.decode([0, 5, -1]) == "a"
    assert subject.token_text(None) == ""


def test_bos_and_eos_are_added_where_the_model_wants_them() -> None:
    keys = {"bos_token_id": 98, "eos_token_id": 99, "add_bos_token": True, "add_eos_token": True}
    subject = tokenizer.from_metadata(bpe_metadata("a b", **keys))
    assert subject.encode("a") == [98, 97, 99]
    assert subject.encode("a", add_special=False) == [97]
    assert (subject.bos_id, subject.eos_id) == (98, 99)


@pytest.mark.parametrize(
    "keys",
    [
        {"merges": ["b c", "a b", "ab c"]},
        {"pre": "llama-bpe"},
        {"token_type": [1] * 258 + [4, 3]},
        {"add_bos_token": True, "bos_token_id": 97},
    ],
)
def test_its_digest_tells_it_from_others_with_the_same_tokens(keys: dict[str, Any]) -> None:
    metadata = bpe_metadata("a b", "b c", "ab c")
    own = tokenizer.from_metadata(metadata)
    other = tokenizer.from_metadata(metadata | {f"tokenizer.ggml.{key}": value for key, value in keys.items()})
    assert other.pieces == own.pieces
    assert other.digest != own.digest
    named = tokenizer.from_metadata(metadata | {"general.name": "tuned", "tokenizer.chat_template": "{{ 1 }}"})
    assert named.digest == own.digest
