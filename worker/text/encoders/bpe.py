"""Byte-level BPE (``tokenizer.ggml.model`` = ``gpt2``) on the ``tokenizers`` library.

A token's text is spelt in 256 printable letters, one a byte (GPT-2's alphabet). Text is first cut into words by the
pre-tokenizer (`worker.text.encoders.pre_tokenizers`); merges never cross a word.
"""

from __future__ import annotations

import codecs
import reprlib
from collections.abc import Sequence
from itertools import accumulate, pairwise, repeat

import tokenizers
from tokenizers import pre_tokenizers
from tokenizers.models import BPE

from orcd.errors import ModelLoadFailed
from worker.text.encoders.pre_tokenizers import PRE_TOKENIZERS
from worker.text.vocabulary import Vocabulary

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF_LETTER = {chr(byte): byte for byte in _PRINTABLE} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}
_AT_ONCE = 1024
"""Tokens that are spelt in one call."""
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
        model = BPE(vocabulary.ids, merges, ignore_merges=pre_tokenizer.looks_words_up)
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
    different = dict.fromkeys(vocabulary.merges)  # the library would take the last of equal ones
    try:
        merges = [(left, right) for left, right in map(str.split, different, repeat(" "))]
    except ValueError:  # no pair
        merges = []
    if not merges or not all(map(all, merges)):
        raise ModelLoadFailed("tokenizer.ggml.merges must be a list of pairs of tokens, each separated by one space")
    return merges


def misfit(error: Exception) -> ModelLoadFailed:
    """What is said of merges of which the library cannot make a tokenizer."""
    return ModelLoadFailed(f"tokenizer.ggml.merges does not fit tokenizer.ggml.tokens: {str(error)[:200]}")


def pieces(tokens: Sequence[str]) -> list[bytes]:
    """`piece` of each; many at a time, as long as no letter is outside the alphabet."""
    found: list[bytes] = []
    for start in range(0, len(tokens), _AT_ONCE):
        some = tokens[start : start + _AT_ONCE]
        try:
            spelt = codecs.charmap_encode("".join(some), "strict", _BYTES)[0]
        except UnicodeEncodeError:
            found += map(piece, some)
            continue
        ends = list(accumulate(map(len, some)))  # a letter is a byte
        found += [spelt[begin:end] for begin, end in pairwise([0, *ends])]
    return found


def piece(token: str) -> bytes:
    """The bytes that a token's letters spell; a letter outside the alphabet stands for itself."""
    try:
        return codecs.charmap_encode(token, "strict", _BYTES)[0]
    except UnicodeEncodeError:
        return b"".join(
            bytes([BYTE_OF_LETTER[letter]]) if letter in BYTE_OF_LETTER else letter.encode() for letter in token
        )
