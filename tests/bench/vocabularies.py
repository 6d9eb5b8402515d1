"""Made-up vocabularies with the counts, kinds and special tokens of real ones; their texts mean nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from gguf.constants import TokenType


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """The ``tokenizer.ggml.*`` arrays."""

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


def byte_alphabet() -> list[str]:
    """The 256 characters by which byte-level BPE writes bytes (Radford et al., 2019: ``bytes_to_unicode``)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = (chr(256 + number) for number in range(256 - len(printable)))
    return [chr(byte) if byte in printable else next(others) for byte in range(256)]


def byte_level(pre: str, num_regular: int, special: list[str], num_padding: int) -> Vocabulary:
    """Bytes, then words of two and three of them with their merges, then special tokens, then padding."""
    alphabet = byte_alphabet()

    def merged() -> Iterator[tuple[str, str]]:
        for first in alphabet:
            yield from ((first, second) for second in alphabet)
        for first in alphabet:
            for second in alphabet:
                yield from ((first + second, third) for third in alphabet)

    pairs = list(islice(merged(), num_regular - 256))
    padding = [f"[PAD{number}]" for number in range(num_padding)]
    return Vocabulary(
        "gpt2",
        pre,
        tokens=[*alphabet, *(first + second for first, second in pairs), *special, *padding],
        types=[TokenType.NORMAL] * num_regular + [TokenType.CONTROL] * len(special) + [TokenType.UNUSED] * num_padding,
        merges=[f"{first} {second}" for first, second in pairs],
    )


def sentencepiece(num_regular: int, special: list[str], num_padding: int) -> Vocabulary:
    """<unk>, <s>, </s>, 256 bytes, then letters and words with falling scores, then special tokens and padding."""
    letters = "▁etaoinshrdlcumwfgypbvkjxqz"

    def words() -> Iterator[str]:
        yield from letters
        for length in (2, 3, 4):
            yield from _words(letters, length)

    num_words = num_regular - 259
    return Vocabulary(
        "llama",
        "default",
        tokens=[
            *("<unk>", "<s>", "</s>"),
            *(f"<0x{byte:02X}>" for byte in range(256)),
            *islice(words(), num_words),
            *special,
            *(f"[PAD{number}]" for number in range(num_padding)),
        ],
        types=[TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL]
        + [TokenType.BYTE] * 256
        + [TokenType.NORMAL] * num_words
        + [TokenType.CONTROL] * len(special)
        + [TokenType.UNUSED] * num_padding,
        scores=[0.0] * 259 + [float(-number) for number in range(num_words)] + [0.0] * (len(special) + num_padding),
    )


def _words(letters: str, length: int) -> Iterator[str]:
    if length == 0:
        yield ""
        return
    for head in _words(letters, length - 1):
        yield from (head + letter for letter in letters)
