"""Encoding with a ``tokenizer.json``, the file of Hugging Face's ``tokenizers`` library; gives that library's ids."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from orcd.errors import ModelLoadFailed
from worker.text import token_bound
from worker.text.encoders import bpe, spm
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
        self.digest = hashlib.sha256(text.encode()).digest()
        self._lock = threading.Lock()  # encode_special_tokens is a property of the whole tokenizer
        added = self._tokenizer.get_added_tokens_decoder()
        self.special_ids = {token.content: token_id for token_id, token in added.items()}
        self.control_ids = {token_id for token_id, token in added.items() if token.special}
        self.control_texts = frozenset(token.content for token in added.values() if token.special)
        longest_first = sorted(filter(None, self.control_texts), key=len, reverse=True)
        self._control = re.compile(f"({'|'.join(map(re.escape, longest_first)) or '(?!)'})")
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

    def encode(
        self,
        text: str,
        *,
        add_special: bool,
        parse_special: bool,
        max_tokens: int | None,
        stand_ins: Mapping[int, str] | None = None,
    ) -> list[int]:
        """``add_special`` runs the file's own post-processor."""
        original = text.translate(stand_ins) if stand_ins else text
        if self._bound:
            self._bound.check(original, max_tokens)
        if original == text:
            ids = self._encode(self._tokenizer, text, add_special=add_special, parse_special=parse_special)
        else:
            ids = self._encode_apart(text, stand_ins or {})
        check_length(len(ids), max_tokens)
        return ids

    def _encode(
        self, tokenizer: tokenizers.Tokenizer, text: str, *, add_special: bool, parse_special: bool
    ) -> list[int]:
        with self._lock:
            tokenizer.encode_special_tokens = not parse_special
            # Unlike encode(), which is no faster, this lets other threads run.
            (encoding,) = tokenizer.encode_batch_fast([text], add_special_tokens=add_special)
        return encoding.ids

    def _encode_apart(self, text: str, stand_ins: Mapping[int, str]) -> list[int]:
        """The ids of a rendered text with stand-ins: the texts between its control tokens are encoded one by one.

        The library cannot be told where in a text control tokens may be.
        """
        ids: list[int] = []
        for place, part in enumerate(self._control.split(text)):
            if part in self.control_texts and place % 2:
                ids.append(self.special_ids[part])
            elif part:
                plain = part.translate(stand_ins)
                tokenizer = self._tokenizer if place == 0 else self._inner
                ids += self._encode(tokenizer, plain, add_special=False, parse_special=False)
        return ids

    @functools.cached_property
    def _inner(self) -> tokenizers.Tokenizer:
        """For text behind a control token: without the space that some files put in front of the first text only."""
        parts = json.loads(self._tokenizer.to_str())
        changed = False
        for step in token_bound.steps(parts.get("pre_tokenizer"), "pretokenizers"):
            if step["type"] == "Metaspace" and step.get("prepend_scheme") == "first":
                step["prepend_scheme"], changed = "never", True  # type: ignore[index]
        return tokenizers.Tokenizer.from_str(json.dumps(parts)) if changed else self._tokenizer


def _strips_leading_space(decoder: Mapping[str, Any]) -> bool:
    if decoder["type"] == "Metaspace":
        return bool(decoder.get("prepend_scheme", "always") != "never")
    return bool(decoder["type"] == "Strip" and decoder.get("start", 0) > 0)
