"""Byte-level BPE (``tokenizer.ggml.model`` = ``gpt2``) on the ``tokenizers`` library.

A token's text is spelt in 256 printable letters, one a byte (GPT-2's alphabet). Text is first cut into words by the
pre-tokenizer (`worker.text.encoders.pre_tokenizers`); merges never cross a word.
"""

from __future__ import annotations

import codecs
import reprlib

import tokenizers
from tokenizers import pre_tokenizers
from tokenizers.models import BPE

from orcd.errors import ModelLoadFailed
from worker.text.encoders.pre_tokenizers import PRE_TOKENIZERS
from worker.text.vocabulary import Vocabulary

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF_LETTER = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}
_BYTES = codecs.charmap_build("".join(sorted(BYTE_OF_LETTER, key=BYTE_OF_LETTER.__getitem__)))


def build(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """The encoder of plain text: no special tokens, no BOS. Raises `ModelLoadFailed` naming the key."""
    pre_tokenizer = PRE_TOKENIZERS.get(vocabulary.pre_tokenizer)
    if pre_tokenizer is None:
        raise ModelLoadFailed(
            f"tokenizer.ggml.pre {reprlib.repr(vocabulary.pre_tokenizer)} is not supported (known: "
            f"{', '.join(PRE_TOKENIZERS)}); give the model's tokenizer.json with --tokenizer"
        )
    merges = merges_of(vocabulary)
    try:
        model = BPE(vocabulary.ids(), merges, ignore_merges=pre_tokenizer.looks_words_up)
    except Exception as error:  # the library raises nothing more specific
        raise misfit(error) from error
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(pre_tokenizers.Split(tokenizers.Regex(words), "isolated") for words in pre_tokenizer.expressions),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer


def merges_of(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The pairs of tokens that are joined, first ones first. Raises `ModelLoadFailed`."""
    merges = [(left, right) for left, _, right in (merge.partition(" ") for merge in vocabulary.merges)]
    if not merges or not all(left and right and " " not in right for left, right in merges):
        raise ModelLoadFailed("tokenizer.ggml.merges must be a list of pairs of tokens, each separated by one space")
    return list(dict.fromkeys(merges))  # the library would take the last of equal ones


def misfit(error: Exception) -> ModelLoadFailed:
    """What is said of merges of which the library cannot make a tokenizer."""
    return ModelLoadFailed(f"tokenizer.ggml.merges does not fit tokenizer.ggml.tokens: {str(error)[:200]}")


def piece(token: str) -> bytes:
    """The bytes that a token's letters spell; a letter outside the alphabet stands for itself."""
    try:
        return codecs.charmap_encode(token, "strict", _BYTES)[0]
    except UnicodeEncodeError:
        return b"".join(
            bytes([BYTE_OF_LETTER[letter]]) if letter in BYTE_OF_LETTER else letter.encode() for letter in token
        )
