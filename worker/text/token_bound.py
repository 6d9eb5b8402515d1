"""At least how many tokens a text has, known without encoding it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Any

from orcd.errors import ContextLengthExceeded

_STEP = 1 << 20
"""Characters that are looked at in one call, which holds the interpreter."""

_ASCII = frozenset(range(0x80))
_ALNUM = frozenset(b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
_WHITESPACE = frozenset(b"\t\n\v\f\r ")
_CLASSES = (
    frozenset(range(256)) - _WHITESPACE,
    frozenset(range(256)) - (_ASCII - _ALNUM),  # few tokens have many of these, some are long rows of dashes
    frozenset(b"0123456789"),
)


class TokenBound:
    """For any class of bytes a text has at least as many tokens as bytes of it, over the most in any one token.

    That holds for bytes that always end up in a token. Whitespace does not, which is dropped after some special tokens,
    nor do bytes without a token of their own, ``covered`` being the others. ``spellings`` are the bytes of text that
    each token can stand for, with spaces for ``space``, which the encoder takes for one.
    """

    def __init__(
        self, spellings: Iterable[bytes], *, covered: Set[int], space: str = " ", ascii_only: bool = False
    ) -> None:
        """With ``ascii_only`` nothing is known of texts with other characters."""
        self._space = space
        self._ascii_only = ascii_only
        self._classes: list[tuple[bytes, int]] = []
        tokens = sorted(spellings, key=len, reverse=True)
        for members in _CLASSES:
            counted = members & covered
            others = bytes(byte for byte in range(256) if byte not in counted)
            # An unknown token stands for one character, of up to four bytes.
            most = 1 if counted <= _ASCII else 4
            for token in tokens:
                if len(token) <= most:
                    break  # the others are no longer than that
                most = max(most, len(token.translate(None, others)))
            self._classes.append((others, most))

    def least(self, text: str) -> int:
        """``text`` is valid Unicode."""
        if self._ascii_only and not text.isascii():
            return 0
        counts = [0] * len(self._classes)
        for start in range(0, len(text), _STEP):
            data = text[start : start + _STEP].replace(self._space, " ").encode()
            for place, (others, _) in enumerate(self._classes):
                counts[place] += len(data.translate(None, others))
        return max(-(-count // most) for count, (_, most) in zip(counts, self._classes, strict=True))

    def check(self, text: str, max_tokens: int | None) -> None:
        """Raises `ContextLengthExceeded` if ``text`` certainly has more than ``max_tokens``."""
        if max_tokens is not None and len(text) > max_tokens:
            check_length(self.least(text), max_tokens)


def check_length(num_tokens: int, max_tokens: int | None) -> None:
    """Raises `ContextLengthExceeded` if a text of at least ``num_tokens`` has more than ``max_tokens``."""
    if max_tokens is not None and num_tokens > max_tokens:
        raise ContextLengthExceeded(
            f"the prompt has at least {num_tokens} tokens, but prompt and answer together may have {max_tokens};"
            " shorten the prompt"
        )


def from_tokenizer_json(parts: Mapping[str, Any], vocabulary: Iterable[str]) -> TokenBound | None:
    """The bound for the parsed file ``parts``; None if the file may drop text, or change it in ways not known here."""
    model = parts["model"]
    keeps = (
        model.get("type") == "BPE"
        and not (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"))
        and parts.get("truncation") is None
        and all(map(_keeps_ascii, steps(parts.get("normalizer"), "normalizers")))
        and all(map(_keeps_text, steps(parts.get("pre_tokenizer"), "pretokenizers")))
    )
    if not keeps:
        return None
    # Printable ASCII is spelt alike in every vocabulary; how other characters are is not asked here.
    covered = {byte for byte in range(0x21, 0x7F) if chr(byte) in model["vocab"]}
    return TokenBound((token.encode() for token in vocabulary), covered=covered, ascii_only=True)


def steps(part: Mapping[str, Any] | None, name: str) -> list[Mapping[str, Any]]:
    """The steps of a part of a tokenizer.json; ``name`` is the key that a sequence of them has there."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for inner in part[name] for step in steps(inner, name)]
    return [part]


def _keeps_ascii(normalizer: Mapping[str, Any]) -> bool:
    """Whether printable ASCII without other characters beside it stays as it is."""
    if normalizer["type"] == "Replace":
        return bool(normalizer.get("pattern") == {"String": " "})
    return normalizer["type"] in ("NFC", "NFD", "NFKC", "NFKD", "Prepend")


def _keeps_text(pre_tokenizer: Mapping[str, Any]) -> bool:
    if pre_tokenizer["type"] == "Split":
        return bool(pre_tokenizer.get("behavior") != "Removed")
    return pre_tokenizer["type"] in ("ByteLevel", "Digits", "Metaspace")
