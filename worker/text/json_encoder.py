"""Encoding with a ``tokenizer.json``, the file of Hugging Face's ``tokenizers`` library; gives that library's ids."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from orcd.errors import ModelLoadFailed
from worker.text import bpe, spm, token_bound
from worker.text.token_bound import check_length

MAX_TOKENS = 1 << 22
"""No vocabulary is near this large; a file that says so is broken."""


class JsonEncoder:
    """Encodes with a file's own normaliser, pre-tokenizer and post-processor.

    ``pieces`` holds the bytes of every token; ``special_ids`` are the added tokens, ``control_ids`` the special ones
    among them. Raises `ModelLoadFailed` naming the file.
    """

    def __init__(self, path: Path) -> None:
        try:
            text = path.read_text(encoding="utf-8")
            self._tokenizer = tokenizers.Tokenizer.from_str(text)
        except OSError as error:
            raise ModelLoadFailed(f"tokenizer {path}: {error.strerror}; give the path of a tokenizer.json") from error
        except Exception as error:  # the library raises nothing more specific
            raise ModelLoadFailed(f"tokenizer {path} is not a tokenizer.json: {str(error)[:200]}") from error
        self._lock = threading.Lock()  # encode_special_tokens is a property of the whole tokenizer
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = {token.content: token_id for token_id, token in added.items()}
        self.control_ids = {token_id for token_id, token in added.items() if token.special}
        parts = json.loads(text)
        decoders = token_bound.steps(parts.get("decoder"), "decoders")
        kinds = {decoder["type"] for decoder in decoders}
        if "ByteLevel" in kinds:
            spell = bpe.piece
        elif kinds & {"ByteFallback", "Metaspace"}:
            spell = spm.piece
        else:
            raise ModelLoadFailed(
                f"tokenizer {path}: decoder {sorted(kinds)} is not supported (ByteLevel, ByteFallback)"
            )
        self.strips_leading_space = any(map(_strips_leading_space, decoders))
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        size = max(vocabulary.values(), default=-1) + 1
        if not 0 < size <= MAX_TOKENS:
            raise ModelLoadFailed(
                f"tokenizer {path} has token ids up to {size - 1}; 1 to {MAX_TOKENS} tokens are allowed"
            )
        self._bound = token_bound.from_tokenizer_json(parts, vocabulary)
        self.pieces = [b""] * size
        for token, token_id in vocabulary.items():
            self.pieces[token_id] = token.encode() if token_id in added else spell(token)

    def token(self, token_id: int) -> str | None:
        """A token as the file spells it."""
        return self._tokenizer.id_to_token(token_id)

    def encode(self, text: str, *, add_special: bool, parse_special: bool, max_tokens: int | None) -> list[int]:
        """``add_special`` runs the file's own post-processor."""
        if self._bound:
            self._bound.check(text, max_tokens)
        with self._lock:
            self._tokenizer.encode_special_tokens = not parse_special
            # Unlike encode(), which is no faster, this lets other threads run.
            (encoding,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=add_special)
        check_length(len(encoding), max_tokens)
        return encoding.ids


def _strips_leading_space(decoder: Mapping[str, Any]) -> bool:
    if decoder["type"] == "Metaspace":
        return bool(decoder.get("prepend_scheme", "always") != "never")
    return bool(decoder["type"] == "Strip" and decoder.get("start", 0) > 0)
