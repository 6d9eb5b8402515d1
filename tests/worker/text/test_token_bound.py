"""How many tokens a text has at least (F16): never more than it has, and enough to refuse what cannot fit."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import given, note, settings
from hypothesis import strategies as st
from tokenizers import decoders, normalizers, pre_tokenizers
from tokenizers.models import WordLevel

from orcd.errors import ContextLengthExceeded
from tests.worker.text.vocabularies import VECTORS, bpe_metadata, spm_metadata, tokenizer_of
from worker.model.gguf import open_gguf
from worker.text import tokenizer, vocabulary
from worker.text.encoders import bpe
from worker.text.tokenizer import Tokenizer

ODD = " \t\n\x00\x85\u00a0\u3000▁e\u0301é😀ﬁ가0-=<>|[]"


@functools.cache
def kinds_of_pieces(name: str) -> tuple[list[str], ...]:
    """The texts of the longest tokens, of all tokens, and what is special or odd."""
    subject = tokenizer_of(name)
    pieces = sorted((subject.token_bytes(n).decode("utf-8", "ignore") for n in range(subject.vocab_size)), key=len)
    return pieces[-50:], pieces, [*subject.special_ids, *ODD]


def fits(subject: Tokenizer, text: str, num_tokens: int, *, parse_special: bool = True) -> bool:
    try:
        subject.encode(text, add_special=False, parse_special=parse_special, max_tokens=num_tokens)
    except ContextLengthExceeded:
        return False
    return True


def check_both_limits(subject: Tokenizer, text: str, *, parse_special: bool) -> None:
    """As many tokens as there are always fit, one less never."""
    ids = subject.encode(text, add_special=False, parse_special=parse_special)
    assert fits(subject, text, len(ids), parse_special=parse_special)
    assert not fits(subject, text, len(ids) - 1, parse_special=parse_special) or not ids


@settings(max_examples=150)
@given(
    pieces=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2**32)), max_size=12),
    times=st.integers(1, 40),
    parse_special=st.booleans(),
)
def test_no_text_that_fits_is_refused(pieces: list[tuple[int, int]], times: int, parse_special: bool) -> None:
    """F16: texts are made of the vocabulary's own longest tokens, special ones, and odd characters, many times over.

    Each example is one for all vocabularies: to think one up takes longer than to try it.
    """
    for name in VECTORS:
        kinds = kinds_of_pieces(name)
        text = "".join(kinds[kind][number % len(kinds[kind])] for kind, number in pieces) * times
        note(f"{name}: {text!r}")
        check_both_limits(tokenizer_of(name), text, parse_special=parse_special)


def test_what_a_vocabulary_drops_or_replaces_is_not_counted() -> None:
    """F16: a byte without a token, spaces after a special token, ▁ for a space."""
    metadata = bpe_metadata("a b")
    metadata["tokenizer.ggml.tokens"][ord("q")] = "no letter"
    no_q = tokenizer.from_metadata(metadata)
    assert no_q.encode("q" * 100 + "a", max_tokens=1) == [ord("a")]
    phi3 = tokenizer.from_metadata(bpe_metadata("a b", control=("<|end|>",)) | {"general.name": "phi-3"})
    assert phi3.encode("<|end|>" + " \n" * 100, parse_special=True, max_tokens=1) == [257]
    spm = tokenizer.from_metadata(spm_metadata(("▁", -1.0), ("▁▁", -2.0), ("▁▁▁▁", -3.0), add_bos_token=False))
    assert len(spm.encode("▁" * 39, max_tokens=10)) == 10


@pytest.mark.parametrize(("text", "at_least"), [("x" * 4_000_000, 83334), ("7" * 4_000_000, 666667)])
def test_a_prompt_that_can_never_fit_is_refused_unread(text: str, at_least: int) -> None:
    """F16: of Qwen2's tokens none has more than 48 bytes of letters or 6 digits."""
    if "qwen2" not in VECTORS:
        pytest.skip("the conformance kit is not here")
    subject = tokenizer_of("qwen2")
    assert subject.encode("x" * 20_000, max_tokens=32_768)
    with pytest.raises(ContextLengthExceeded, match=rf"at least {at_least} tokens, .* 32768; shorten"):
        subject.encode(text, max_tokens=32_768)


def tokenizer_json(folder: Path, change: Any = None) -> Tokenizer:
    """A small vocabulary as a tokenizer.json, after ``change(library)``."""
    library = bpe.build(vocabulary.from_metadata(bpe_metadata("a b", "ab ab", "abab abab")))
    library.decoder = decoders.ByteLevel()
    if change is not None:
        change(library)
    library.save(str(folder / "tokenizer.json"))
    return tokenizer.from_tokenizer_json(folder / "tokenizer.json")


def test_a_tokenizer_json_has_the_same_bound(tmp_path: Path) -> None:
    """F16."""
    subject = tokenizer_json(tmp_path)
    assert len(subject.encode("ab" * 40, max_tokens=10)) == 10
    with pytest.raises(ContextLengthExceeded, match="at least 11 tokens"):
        subject.encode("ab" * 41, max_tokens=10)


def _compose(library: tokenizers.Tokenizer) -> None:
    library.normalizer = normalizers.NFC()


def _truncate(library: tokenizers.Tokenizer) -> None:
    library.enable_truncation(4)


def _strip(library: tokenizers.Tokenizer) -> None:
    library.normalizer = normalizers.Replace("ab", "")


def _remove(library: tokenizers.Tokenizer) -> None:
    cut = pre_tokenizers.Split(tokenizers.Regex("(ab){2,}"), "removed")
    library.pre_tokenizer = pre_tokenizers.Sequence([cut, library.pre_tokenizer])


def _words(library: tokenizers.Tokenizer) -> None:
    library.model = WordLevel({"<unk>": 0}, unk_token="<unk>")


@pytest.mark.parametrize("change", [_truncate, _strip, _remove, _words])
def test_nothing_is_refused_where_a_file_drops_text(tmp_path: Path, change: Any) -> None:
    """F16."""
    assert len(tokenizer_json(tmp_path, change).encode("ab" * 1000, max_tokens=4)) <= 4


@settings(max_examples=100)
@given(text=st.text(st.sampled_from("ab \u0301\u00e9▁<1" + ODD), max_size=200))
def test_composed_characters_are_no_reason_to_refuse(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """F16: NFC makes one character of two."""
    subject = tokenizer_json(tmp_path_factory.getbasetemp(), _compose)
    check_both_limits(subject, text * 20, parse_special=True)


def test_the_demo_models_own_prompts_fit(demo_model: Path) -> None:
    """F16."""
    subject = tokenizer.from_metadata(open_gguf(demo_model).metadata)
    for text in ("old pond, " * 30, "-" * 500, "a b c " * 50):
        check_both_limits(subject, text, parse_special=True)
