"""Small vocabularies as GGUF metadata, those of the small models, and the conformance kit's where it is at hand."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.models.files import SMALL
from worker.model.gguf import open_gguf
from worker.text import tokenizer
from worker.text.encoders import bpe
from worker.text.tokenizer import Tokenizer

KIT = Path(__file__).parents[4] / "shared" / "conformance"
needs_kit = pytest.mark.skipif(not KIT.exists(), reason="the conformance kit ../shared/conformance is not here")
_OFFICIAL = "qwen35-official"  # has no vocabulary of its own
_OF_KIT = {path.stem: path for folder in (KIT, KIT / "2026") for path in sorted((folder / "tokenizer").glob("*.json"))}
VECTORS = [*SMALL, *(name for name in _OF_KIT if name != _OFFICIAL)]
"""Names of vocabularies for which there is what llama.cpp makes of some texts."""

HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>")


def bpe_metadata(
    *merges: str, control: tuple[str, ...] = ("<|im_end|>",), pre: str = "qwen2", **keys: Any
) -> dict[str, Any]:
    """All 256 bytes (id = byte), one token a merge, then control tokens."""
    letters = sorted(bpe.BYTE_OF_LETTER, key=bpe.BYTE_OF_LETTER.__getitem__)
    tokens = [*letters, *(merge.replace(" ", "") for merge in merges), *control]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * (len(tokens) - len(control)) + [3] * len(control),
        "tokenizer.ggml.merges": list(merges),
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }


def spm_metadata(*scored: tuple[str, float], **keys: Any) -> dict[str, Any]:
    """<unk>, <s>, </s>, 256 byte tokens (id = byte + 3), then ordinary tokens with their scores."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *(token for token, _ in scored)]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256, *[1] * len(scored)],
        "tokenizer.ggml.scores": [0.0] * 259 + [score for _, score in scored],
        **{f"tokenizer.ggml.{key}": value for key, value in keys.items()},
    }


class NoEncoder:
    """For tests that begin with ids."""

    control_texts: frozenset[str] = frozenset()

    def encode(
        self,
        text: str,
        *,
        add_special: bool,
        parse_special: bool,
        max_tokens: int | None,
        stand_ins: Mapping[int, str] | None = None,
    ) -> list[int]:
        raise AssertionError


def decoder(*pieces: bytes, hidden: int = 0, strips_leading_space: bool = False) -> Tokenizer:
    """A tokenizer that only decodes: ``pieces``, then ``hidden`` control tokens."""
    first = len(pieces)
    return Tokenizer(
        NoEncoder(),
        [*pieces, *[b"<control>"] * hidden],
        special_ids={},
        hidden_ids=set(range(first, first + hidden)),
        end_ids=frozenset(),
        bos_id=None,
        eos_id=None,
        strips_leading_space=strips_leading_space,
    )


@functools.cache
def vectors_of(name: str) -> dict[str, Any]:
    """The texts of one of `VECTORS`, and what becomes of them."""
    if name in SMALL:
        vectors = json.loads(SMALL[name].with_name("tokens.json").read_text())[name]
    else:
        vectors = json.loads(_OF_KIT[name].read_text())
    assert isinstance(vectors, dict)
    return vectors


@functools.cache
def tokenizer_of(name: str) -> Tokenizer:
    """The tokenizer that belongs to `vectors_of`."""
    if name in SMALL:
        return tokenizer.from_metadata(open_gguf(SMALL[name]).metadata)
    kit = _OF_KIT[name].parents[1]
    if name == _OFFICIAL:
        metadata = open_gguf(KIT / "tokenizer" / "ggml-vocab-qwen2.gguf").metadata
        return tokenizer.from_metadata({**metadata, "tokenizer.ggml.pre": "qwen35"})
    file = vectors_of(name)["vocab_file"]
    folder = "tokenizer" if file.startswith("ggml-vocab") else "models"
    return tokenizer.from_metadata(open_gguf(kit / folder / file).metadata)
