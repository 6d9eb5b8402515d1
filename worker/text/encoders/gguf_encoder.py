"""Encoding with a GGUF file's own vocabulary; gives the ids that llama.cpp gives."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping

from orcd.errors import ModelLoadFailed
from worker.text.encoders import bpe, character_bpe, spm
from worker.text.special_tokens import SpecialTokens
from worker.text.token_bound import TokenBound, check_length
from worker.text.vocabulary import TokenType, Vocabulary

_KINDS = {"gpt2": bpe, "llama": spm, "gemma4": character_bpe}
_SPELT = frozenset((TokenType.NORMAL, TokenType.BYTE))


class GgufEncoder:
    """Cuts out the special tokens and gives the plain text between them to the ``tokenizers`` library.

    ``pieces`` holds the bytes of every token. Raises `ModelLoadFailed` naming the key.
    """

    def __init__(self, vocabulary: Vocabulary, specials: SpecialTokens) -> None:
        if vocabulary.model not in _KINDS:
            raise ModelLoadFailed(
                f"tokenizer.ggml.model {reprlib.repr(vocabulary.model)} is not supported (known: {', '.join(_KINDS)});"
                " give the model's tokenizer.json with --tokenizer"
            )
        kind = _KINDS[vocabulary.model]
        self._plain = kind.build(vocabulary)
        spelt = kind.pieces(vocabulary.tokens)
        self._specials = specials
        self.control_texts = specials.control_texts
        self.digest = vocabulary.digest
        self._bound = _bound(vocabulary, specials, spelt)
        self.pieces = spelt
        for token_id, token_type in enumerate(vocabulary.types):
            if token_type not in _SPELT:
                spelt[token_id] = b"" if token_type == TokenType.UNUSED else vocabulary.tokens[token_id].encode()
        self._before = _added("bos", vocabulary.bos_id, wanted=vocabulary.add_bos)
        self._after = _added("eos", vocabulary.eos_id, wanted=vocabulary.add_eos)
        self._space_prefix = vocabulary.add_space_prefix

    def encode(
        self,
        text: str,
        *,
        add_special: bool,
        parse_special: bool,
        max_tokens: int | None,
        stand_ins: Mapping[int, str] | None = None,
    ) -> list[int]:
        """With a space prefix, text at the start and after every special token begins with one more space."""
        self._bound.check(text.translate(stand_ins) if stand_ins else text, max_tokens)
        ids = list(self._before) if add_special else []
        begins = True
        for part in self._specials.split(text, parse_special=parse_special, stand_ins=stand_ins):
            if isinstance(part, int):
                ids.append(part)
            else:
                # Unlike encode(), which is no faster, this lets other threads run.
                (encoding,) = self._plain.encode_batch_fast([" " + part if begins and self._space_prefix else part])
                check_length(len(ids) + len(encoding), max_tokens)
                ids += encoding.ids
            begins = isinstance(part, int)
        ids += self._after if add_special else []
        check_length(len(ids), max_tokens)
        return ids


def _added(name: str, token_id: int | None, *, wanted: bool) -> list[int]:
    if not wanted:
        return []
    if token_id is None:
        raise ModelLoadFailed(
            f"tokenizer.ggml.add_{name}_token is set but tokenizer.ggml.{name}_token_id is missing, or no id of a token"
        )
    return [token_id]


def _bound(vocabulary: Vocabulary, specials: SpecialTokens, spelt: list[bytes]) -> TokenBound:
    """``spelt``: the bytes of each token as if it were none of the special ones."""
    spellings = [text.encode() for text in specials.ids]
    if _KINDS[vocabulary.model] is bpe:
        covered = {byte for letter, byte in bpe.BYTE_OF_LETTER.items() if letter in vocabulary.ids}
        return TokenBound([*spellings, *spelt], covered=covered)
    for token, token_type in zip(vocabulary.tokens, vocabulary.types, strict=True):
        is_byte = token_type == TokenType.BYTE
        spellings.append(spm.piece(token) if is_byte else token.replace(spm.SPACE, " ").encode())
    # A character without a token is an unknown token.
    return TokenBound(spellings, covered=frozenset(range(256)), space=spm.SPACE)
