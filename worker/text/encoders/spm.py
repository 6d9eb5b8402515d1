"""SentencePiece-style BPE (``tokenizer.ggml.model`` = ``llama``) on the ``tokenizers`` library.

Spaces are spelt ``▁`` and there are no words: merges may cross anything. The file holds no merges but a score for each
token; two neighbours merge when the vocabulary holds them joined, highest score first, leftmost first within one token.
(Trained vocabularies give every token a score of its own; among equal scores the lower id goes first.)
A character without a token becomes its UTF-8 bytes, tokens ``<0x00>`` to ``<0xFF>``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import tokenizers
from tokenizers import normalizers
from tokenizers.models import BPE

from orcd.errors import ModelLoadFailed
from worker.text.vocabulary import TokenType, Vocabulary

SPACE = "▁"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_MERGEABLE = frozenset({TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED})


def build(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """The encoder of plain text: no special tokens, no BOS, no space in front. Raises `ModelLoadFailed`."""
    if not vocabulary.scores:
        raise ModelLoadFailed("tokenizer.ggml.scores is missing; convert the model again")
    if any(map(math.isnan, vocabulary.scores)):
        raise ModelLoadFailed("tokenizer.ggml.scores holds a value that is not a number")
    assert vocabulary.unknown_id is not None
    unknown = vocabulary.tokens[vocabulary.unknown_id]
    tokenizer = tokenizers.Tokenizer(BPE(vocabulary.ids, _merges(vocabulary), byte_fallback=True, unk_token=unknown))
    tokenizer.normalizer = normalizers.Replace(" ", SPACE)
    return tokenizer


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Every way to make a token of two others, best score first."""
    types, all_scores = vocabulary.types, vocabulary.scores
    scores = {token: all_scores[at] for token, at in vocabulary.ids.items() if types[at] in _MERGEABLE}
    return [
        (token[:cut], token[cut:])
        for token in sorted(scores, key=scores.__getitem__, reverse=True)
        for cut in range(1, len(token))
        if token[:cut] in scores and token[cut:] in scores
    ]


def pieces(tokens: Sequence[str]) -> list[bytes]:
    """`piece` of each."""
    return list(map(piece, tokens))


def piece(token: str) -> bytes:
    """The bytes of an ordinary token or of a byte token ``<0xXX>``."""
    if match := _BYTE.fullmatch(token):
        return bytes.fromhex(match[1])
    return token.replace(SPACE, " ").encode()
