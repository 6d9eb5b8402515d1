"""Compilers of grammars for the vocabularies that ship with the tests, each loaded once."""

from __future__ import annotations

from functools import cache

import numpy as np

from tests.models.files import SMALL
from worker.engine.token_constraint import TokenMask
from worker.model.gguf import open_gguf
from worker.text import tokenizer as tokenizers
from worker.text.grammar.alphabet import Alphabet
from worker.text.grammar.grammar_compiler import GrammarCompiler
from worker.text.grammar.token_matcher import TokenMatcher
from worker.text.tokenizer import Tokenizer

BYTE_LEVEL, SENTENCE_PIECE = "qwen2-q4_k_m", "llama2-q4_0"


@cache
def tokenizer_of(name: str) -> Tokenizer:
    return tokenizers.from_metadata(open_gguf(SMALL[name]).metadata)


@cache
def alphabet_of(name: str) -> Alphabet:
    return Alphabet(tokenizer_of(name))


@cache
def compiler_of(name: str) -> GrammarCompiler:
    return GrammarCompiler(tokenizer_of(name))


def allowed_ids(matcher: TokenMatcher, num_tokens: int, num_left: int = 1000) -> list[int]:
    """The ids that may come next."""
    mask = np.zeros(-(-num_tokens // 32), np.uint32)
    matcher.write_mask(memoryview(mask).cast("B"), num_left)
    return [int(token_id) for token_id in np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))]


def words_of(mask: TokenMask | int | Exception, num_words: int) -> np.ndarray:
    """What a batch has said of the ids that may come next, as `TokenMatcher.write_mask` writes it."""
    if isinstance(mask, TokenMask):
        return np.frombuffer(mask.words, np.uint32)
    assert isinstance(mask, int), mask
    words = np.zeros(num_words, np.uint32)
    words[mask // 32] = 1 << mask % 32
    return words
