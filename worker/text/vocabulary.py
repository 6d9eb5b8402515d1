"""The vocabulary of a GGUF file, checked: ``tokenizer.ggml.*`` metadata as one frozen value."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, fields
from enum import IntEnum
from functools import cached_property
from hashlib import sha256
from typing import Any, TypeGuard

import msgspec

from orcd.errors import ModelLoadFailed
from worker.text.encoders.pre_tokenizers import PRE_TOKENIZERS

MAX_TOKEN_CHARACTERS = 1024
"""Real tokens are far shorter; the work to build a tokenizer grows with the square of this."""

_PREFIX = "tokenizer.ggml."


class TokenType(IntEnum):
    """Values of ``tokenizer.ggml.token_type``."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class Vocabulary:
    """Token texts as the file spells them (byte-level letters or ``▁``), with what the file says about each.

    ``types`` and, for SentencePiece-style files, ``scores`` are as long as ``tokens``. Where the file is silent, ids
    and switches have llama.cpp's defaults, but for BOS and EOS of byte-level files: there they are token 11, whatever
    that is, and here none (Falcon 3).
    """

    model: str
    pre_tokenizer: str
    tokens: Sequence[str]
    types: Sequence[int]
    scores: Sequence[float]
    merges: Sequence[str]
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    eom_id: int | None
    unknown_id: int | None
    add_bos: bool
    add_eos: bool
    add_space_prefix: bool
    is_phi3: bool  # by the model's name

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token -> id, the lowest where several have one text; in the order of ids."""
        numbers = range(len(self.tokens))
        ids = dict(zip(self.tokens, numbers, strict=True))
        if len(ids) < len(numbers):
            ids.update(zip(reversed(self.tokens), reversed(numbers), strict=True))  # the lowest comes last
        return ids

    @property
    def digest(self) -> bytes:
        """A hash of all its fields."""
        return sha256(msgspec.msgpack.encode([getattr(self, field.name) for field in fields(self)])).digest()

    def all_ids(self, texts: Set[str]) -> set[int]:
        """Of all tokens that are spelt like one of ``texts``."""
        if len(self.ids) == len(self.tokens):
            return {self.ids[text] for text in texts & self.ids.keys()}
        return {token_id for token_id, text in enumerate(self.tokens) if text in texts}


def from_metadata(metadata: Mapping[str, Any]) -> Vocabulary:
    """Raises `ModelLoadFailed` naming the key that is missing, of the wrong type, or out of range."""
    model = _string(metadata, "model")
    pre_tokenizer = _string(metadata, "pre", default="default")
    tokens = _list(metadata, "tokens", str, required=True)
    if max(map(len, tokens)) > MAX_TOKEN_CHARACTERS:
        raise ModelLoadFailed(f"{_PREFIX}tokens holds a token longer than {MAX_TOKEN_CHARACTERS} characters")
    count = len(tokens)
    is_spm = model == "llama"
    known = PRE_TOKENIZERS.get(pre_tokenizer)
    bos_id = token_id(metadata, "bos_token_id", count, default=1 if is_spm else None)
    begins = is_spm or (known is not None and known.adds_bos and bos_id is not None)
    return Vocabulary(
        model=model,
        pre_tokenizer=pre_tokenizer,
        tokens=tokens,
        types=_list(metadata, "token_type", int, length=count) or [TokenType.NORMAL] * count,
        scores=_list(metadata, "scores", float, length=count),
        merges=_list(metadata, "merges", str),
        bos_id=bos_id,
        eos_id=token_id(metadata, "eos_token_id", count, default=2 if is_spm else None),
        eot_id=token_id(metadata, "eot_token_id", count),
        eom_id=token_id(metadata, "eom_token_id", count),
        unknown_id=token_id(metadata, "unknown_token_id", count, default=0 if is_spm else None),
        # The converter of Gemma 4 first wrote false.
        add_bos=model == "gemma4" or _flag(metadata, "add_bos_token", default=begins),
        add_eos=_flag(metadata, "add_eos_token", default=False),
        add_space_prefix=_flag(metadata, "add_space_prefix", default=is_spm) and is_spm,
        is_phi3=any(name in str(metadata.get("general.name", "")).lower() for name in ("phi-3", "phi3")),
    )


def warnings(metadata: Mapping[str, Any]) -> list[str]:
    """What is wrong with a vocabulary that can be used all the same, by itself or with a tokenizer.json."""
    tokens = metadata.get(f"{_PREFIX}tokens")
    if not isinstance(tokens, list):
        return []
    count, found = len(tokens), []
    for name in ("bos", "eos", "eot", "eom", "unknown"):
        value = metadata.get(f"{_PREFIX}{name}_token_id")
        if _is_integer(value) and not 0 <= value < count:
            found.append(f"{_PREFIX}{name}_token_id is {value}, which is no id of {count} tokens; the default is used")
    if num_twice := count - len(set(map(str, tokens))):
        found.append(f"{_PREFIX}tokens holds {num_twice} tokens spelt like others; text becomes the first of them")
    return found


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _string(metadata: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = metadata.get(_PREFIX + name, default)
    if value is None:
        raise ModelLoadFailed(f"{_PREFIX}{name} is missing: the file has no vocabulary; give one with --tokenizer")
    if not isinstance(value, str):
        raise ModelLoadFailed(f"{_PREFIX}{name} must be a string")
    return value


def _list(
    metadata: Mapping[str, Any], name: str, kind: type, *, required: bool = False, length: int | None = None
) -> list[Any]:
    value = metadata.get(_PREFIX + name)
    if value is None and not required:
        return []
    if not isinstance(value, list) or not value:
        raise ModelLoadFailed(f"{_PREFIX}{name} must be a list of {kind.__name__} that is not empty")
    if kind is float and set(map(type, value)) == {int}:
        value = list(map(float, value))
    if set(map(type, value)) != {kind}:
        raise ModelLoadFailed(f"{_PREFIX}{name} must hold only {kind.__name__} values")
    if length is not None and len(value) < length:
        raise ModelLoadFailed(f"{_PREFIX}{name} has {len(value)} entries for {length} tokens")
    return value[:length]


def _flag(metadata: Mapping[str, Any], name: str, *, default: bool) -> bool:
    value = metadata.get(_PREFIX + name, default)
    if not isinstance(value, bool):
        raise ModelLoadFailed(f"{_PREFIX}{name} must be true or false")
    return value


def token_id(metadata: Mapping[str, Any], name: str, count: int, default: int | None = None) -> int | None:
    """The id in ``tokenizer.ggml.NAME``; ``default`` if it is not one of ``count`` tokens, of which `warnings` tells.

    Raises `ModelLoadFailed` if it is no number.
    """
    value = metadata.get(_PREFIX + name)
    if value is not None and not _is_integer(value):
        raise ModelLoadFailed(f"{_PREFIX}{name} is {reprlib.repr(value)}; it must be the id of a token")
    if value is not None and 0 <= value < count:
        return value
    return default if default is not None and default < count else None
