"""Byte-level BPE (``tokenizer.ggml.model`` = ``gpt2``) on the ``tokenizers`` library.

A token's text is spelt in 256 printable letters, one a byte (GPT-2's alphabet). Text is first cut into words by the
pre-tokenizer's regular expressions; merges never cross a word.
"""

from __future__ import annotations

import reprlib
from collections.abc import Sequence

import tokenizers
from tokenizers import pre_tokenizers
from tokenizers.models import BPE

from orcd.errors import ModelLoadFailed
from worker.text.vocabulary import Vocabulary

_CONTRACTION = r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_REST_WITH_SLASH = _REST.replace(r"[\r\n]*", r"[\r\n/]*", 1)
_LLAMA3 = rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}"
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CAMEL, _CAPITALS = (rf"[^\r\n\p{{L}}\p{{N}}]?{case}" for case in (f"{_UPPER}*{_LOWER}+", f"{_UPPER}+{_LOWER}*"))
_GPT4O = rf"{_CAMEL}(?:{_CONTRACTION})?|{_CAPITALS}(?:{_CONTRACTION})?|\p{{N}}{{1,3}}|{_REST_WITH_SLASH}"
_TEKKEN = rf"{_CAMEL}|{_CAPITALS}|\p{{N}}|{_REST_WITH_SLASH}"

WORDS: dict[str, Sequence[str]] = {
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
    "gpt-2": (_GPT2,),
    "phi-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),
    "llama-bpe": (_LLAMA3,),
    "llama3": (_LLAMA3,),
    "llama-v3": (_LLAMA3,),
    "qwen2": (_QWEN2,),
    "deepseek-r1-qwen": (_QWEN2,),
    "gpt-4o": (_GPT4O,),
    "llama4": (_GPT4O,),
    "tekken": (_TEKKEN,),
}
"""Pre-tokenizer name (``tokenizer.ggml.pre``) -> expressions applied one after the other; each cuts further. They are
those of the models' own tokenizer.json files; llama.cpp's differ from ``gpt-4o`` and ``tekken`` at combining marks."""

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF_LETTER = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}


def build(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """The encoder of plain text: no special tokens, no BOS. Raises `ModelLoadFailed` naming the key."""
    words = WORDS.get(vocabulary.pre_tokenizer)
    if words is None:
        raise ModelLoadFailed(
            f"tokenizer.ggml.pre {reprlib.repr(vocabulary.pre_tokenizer)} is not supported (known: {', '.join(WORDS)});"
            " give the model's tokenizer.json with --tokenizer"
        )
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in vocabulary.merges)]
    if not merges or not all(left and right and " " not in right for left, right in merges):
        raise ModelLoadFailed("tokenizer.ggml.merges must be a list of pairs of tokens, each separated by one space")
    ids = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    try:
        model = BPE(ids, merges, ignore_merges=vocabulary.ignore_merges)
    except Exception as error:  # the library raises nothing more specific
        raise ModelLoadFailed(
            f"tokenizer.ggml.merges does not fit tokenizer.ggml.tokens: {str(error)[:200]}"
        ) from error
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(tokenizers.Regex(expression), "isolated") for expression in words),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def piece(token: str) -> bytes:
    """The bytes that a token's letters spell; a letter outside the alphabet stands for itself."""
    try:
        return bytes(map(BYTE_OF_LETTER.__getitem__, token))
    except KeyError:
        return b"".join(
            bytes([BYTE_OF_LETTER[letter]]) if letter in BYTE_OF_LETTER else letter.encode() for letter in token
        )
