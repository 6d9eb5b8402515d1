"""Byte-level BPE (``tokenizer.ggml.model`` = ``gpt2``) on the ``tokenizers`` library.

A token's text is spelt in 256 printable letters, one a byte (GPT-2's alphabet). Text is first cut into words by the
pre-tokenizer's regular expressions; merges never cross a word.
"""

from __future__ import annotations

from collections.abc import Sequence

import tokenizers
from tokenizers import pre_tokenizers
from tokenizers.models import BPE

from worker.errors import ModelLoadFailed
from worker.text.vocabulary import Vocabulary

_CONTRACTION = r"'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_PUNCTUATION_AND_SPACE = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_GPT4O = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?:{_CONTRACTION})?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?:{_CONTRACTION})?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

WORDS: dict[str, Sequence[str]] = {
    "gpt-2": (_GPT2,),
    "llama-bpe": (rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_PUNCTUATION_AND_SPACE}",),
    "qwen2": (rf"{_CONTRACTION}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_PUNCTUATION_AND_SPACE}",),
    "gpt-4o": (_GPT4O,),
    "default": (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]"),
}
"""Pre-tokenizer name (``tokenizer.ggml.pre``) -> expressions applied one after the other; each cuts further."""

IGNORES_MERGES = frozenset({"llama-bpe"})
"""Pre-tokenizers whose words are one token when the vocabulary holds them, whatever the merges say."""

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF_LETTER = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}


def build(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """The encoder of plain text: no special tokens, no BOS. Raises `ModelLoadFailed` naming the key."""
    words = WORDS.get(vocabulary.pre_tokenizer)
    if words is None:
        raise ModelLoadFailed(
            f"tokenizer.ggml.pre {vocabulary.pre_tokenizer!r} is not supported (known: {', '.join(WORDS)});"
            " give the model's tokenizer.json with --tokenizer"
        )
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in vocabulary.merges)]
    if not merges or not all(left and right and " " not in right for left, right in merges):
        raise ModelLoadFailed("tokenizer.ggml.merges must be a list of pairs of tokens, each separated by one space")
    ids = {token: token_id for token_id, token in enumerate(vocabulary.tokens)}
    try:
        model = BPE(ids, merges, ignore_merges=vocabulary.pre_tokenizer in IGNORES_MERGES)
    except Exception as error:  # the library raises nothing more specific
        raise ModelLoadFailed(f"tokenizer.ggml.merges does not fit tokenizer.ggml.tokens: {error}") from error
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
