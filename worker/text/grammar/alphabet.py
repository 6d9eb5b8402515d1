"""The tokens that any text can be written with, and what is left of a row of tokens behind a text."""

from __future__ import annotations

import re
from array import array

import numpy as np
from numpy.typing import NDArray

from worker.text.grammar.spelling import Spelling
from worker.text.tokenizer import Tokenizer

MOST_PASSED = 4
"""Tokens of an earlier closing that may have been written since, in other tokens."""
MOST_OF_TEXT = 16
"""Tokens of a text in an earlier closing in whose place another text may have been written."""
FIRST = b'}]":,0n'
SPACE = b" \t\n\r"
_ENDS = frozenset(b'}]":,')
_ENDING = b'}]"0\x80\x90\xa0'
"""What may end half of an array, an escape, a number or a character."""
_JOINTS = frozenset(b"@.-:/")
"""What addresses, dates and the like have between their parts."""
_STRUCTURE = re.compile(rb'[{}\[\],:"]')
_DIGITS = frozenset(b"%c" % byte for byte in b"0123456789+-.eE")
_NEVER = b"\xff"
"""No text has this byte: what stands for itself, and for no text, begins with it."""


class Alphabet:
    """The control tokens and the tokens of one byte of a vocabulary, in the order in which a closing tries them.

    With these any text can be written, but for vocabularies that lack some. A control token, where one may come, ends a
    stretch of text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        texts = [tokenizer.token_bytes(token_id) for token_id in range(tokenizer.vocab_size)]
        is_control = [tokenizer.is_special(token_id) for token_id in range(tokenizer.vocab_size)]
        by_byte: dict[int, int] = {}
        for token_id, token in enumerate(texts):
            if len(token) == 1 and not is_control[token_id]:
                by_byte.setdefault(token[0], token_id)
        control = [each for each, is_one in enumerate(is_control) if is_one and each not in tokenizer.end_ids]
        letters = [byte for byte in range(256) if byte not in FIRST and byte not in SPACE]
        ids = [by_byte[byte] for byte in (*FIRST, *letters, *SPACE) if byte in by_byte]
        self.ids: NDArray[np.int32] = np.array([*control, *ids], np.int32)
        self._bytes, self._bits = self.ids >> 3, (self.ids & 7).astype(np.uint8)
        self._by_byte = by_byte
        self.spelling = Spelling(tokenizer)
        self.texts = [_NEVER if is_one else token for token, is_one in zip(texts, is_control, strict=True)]
        """The text of each token; that of a control token is no text's."""
        self.most_bytes = max(map(len, self.texts))
        """No text of a token has more, and none more characters."""
        self.most_within = max((len(token) for token in self.texts if b"\x80" <= token[:1] < b"\xc0"), default=0)
        """The same of tokens that begin within a character."""
        self.num_chars = array("i", map(_num_chars, self.texts))
        """Of each token the characters with which a string goes on; 0 for an end, an escape or half a character."""
        shapes: dict[bytes, int] = {}
        spaced = (token.replace(b"\n", b" ") for token in self.texts)
        self.shapes = array("i", (shapes.setdefault(token, len(shapes)) for token in spaced))
        """Of each token a number that others have whose texts are the same but for which white space they have."""
        spaces = [len(token) - len(token.lstrip(SPACE)) for token in self.texts]
        self.only_spaces = array(
            "i", (len(token) if each == len(token) else 0 for token, each in zip(self.texts, spaces, strict=True))
        )
        """Of each token the characters of white space, if it has nothing else."""
        self.text_keys, self.space_keys = (
            array("i", (-num or shape for num, shape in zip(nums, self.shapes, strict=True)))
            for nums in (self.num_chars, self.only_spaces)
        )
        """In strings, and behind white space: of tokens that go on with that their characters, below 0, else the shape.
        """
        in_number = [token[:1] in _DIGITS for token in self.texts]
        self.number_keys = array(
            "i", (~each if is_in else each for each, is_in in zip(self.shapes, in_number, strict=True))
        )
        """The same in numbers: of tokens that go on with that their shape, below 0."""
        self._num_spaces = np.minimum(spaces, 255).astype(np.uint8)  # with which each begins
        self._beginning_with: dict[int, NDArray[np.uint8]] = {}
        numbers: dict[bytes, int] = {b"": 0}
        kinds = (bytes(sorted(b"".join(_STRUCTURE.findall(token)))) for token in self.texts)
        self.kinds = array("H", (numbers.setdefault(kind, len(numbers)) for kind in kinds))
        """Of each token the number of its kind; 0 for those that begin and end no value."""
        self.structures = list(numbers)
        """What tokens of each kind have of the bytes that begin and end values."""
        self.ending_ids = [by_byte[byte] for byte in _ENDING if byte in by_byte]
        self.quote_id, self.zero_id = by_byte.get(ord('"'), -1), by_byte.get(ord("0"), -1)
        self.control_ids = frozenset(control)
        self.end_id = min(tokenizer.end_ids)
        self.end_ids = self.control_ids.union(by_byte[byte] for byte in _ENDS if byte in by_byte)
        self.joint_ids = {by_byte[byte] for byte in _JOINTS if byte in by_byte}

    def of_byte(self, byte: int) -> int | None:
        """The token of one byte, if there is one."""
        return self._by_byte.get(byte)

    def allowed(self, mask: bytes) -> list[int]:
        """Those whose bits are set in a mask of token ids."""
        bits = np.frombuffer(mask, np.uint8)
        found: list[int] = self.ids[(bits[self._bytes] >> self._bits & 1) != 0].tolist()
        return found

    def beginning_with(self, num_spaces: int) -> NDArray[np.uint8]:
        """A mask of the tokens that begin with at most so many characters of white space, in bytes."""
        found = self._beginning_with.get(num_spaces)
        if found is None:
            found = np.packbits(self._num_spaces <= num_spaces, bitorder="little")
            self._beginning_with[num_spaces] = found
        return found

    def remainder(self, closing: tuple[int, ...], token_id: int) -> tuple[int, ...] | None:
        """What is left of ``closing`` when ``token_id`` has written its beginning; None if that is another text."""
        if closing and closing[0] == token_id:
            return closing[1:]
        return self._behind(closing, 0, self.texts[token_id])

    def likely_remainder(self, closing: tuple[int, ...], token_id: int) -> tuple[int, ...]:
        """What may be left of a closing from some tokens ago, when ``token_id`` has ended a string, a number or more.

        All of it where it does not have what was written, whatever spaces stand around that.
        """
        text = self.texts[token_id].translate(None, SPACE)
        structure = _STRUCTURE.search(text)
        ends = text[structure.start() :] if structure else b""
        for written in (text, ends) if ends != text else (text,):
            for passed, token_id in enumerate(closing[: MOST_PASSED + 1] if written else ()):
                token = self.texts[token_id]
                if not written.startswith(token) and not token.startswith(written):
                    continue  # as most are, and this is soon seen
                rest = self._behind(closing, passed, written)
                if rest is not None:
                    return rest
        return self._behind_text(closing, ends)

    def _behind_text(self, closing: tuple[int, ...], ends: bytes) -> tuple[int, ...]:
        """What is left of ``closing`` when another text than its first one was ended with ``ends``; else all of it."""
        for passed, token_id in enumerate(closing[:MOST_OF_TEXT] if ends.startswith(b'"') else ()):
            before, quote, behind = self.texts[token_id].partition(b'"')
            if quote and not before:
                return self._behind(closing, passed, ends) or closing
            if quote:
                return closing[passed + 1 :] if quote + behind == ends else closing
        return closing

    def _behind(self, closing: tuple[int, ...], start: int, text: bytes) -> tuple[int, ...] | None:
        if text.startswith(_NEVER):
            return None
        length = 0
        for index in range(start, len(closing)):
            token = self.texts[closing[index]]
            if not text.startswith(token, length):
                left = text[length:]
                return self._cut(token[len(left) :], closing[index + 1 :]) if token.startswith(left) else None
            length += len(token)
            if length == len(text):
                return closing[index + 1 :]
        return None

    def _cut(self, left: bytes, behind: tuple[int, ...]) -> tuple[int, ...] | None:
        """What is ``left`` of a token, in tokens of one byte, and what comes ``behind``."""
        if any(byte not in self._by_byte for byte in left):
            return None
        return (*(self._by_byte[byte] for byte in left), *behind)


def _num_chars(text: bytes) -> int:
    if b'"' in text or b"\\" in text:
        return 0
    try:
        return len(text.decode())
    except ValueError:
        return 0
