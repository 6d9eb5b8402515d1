from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.worker.text.grammar.compilers import BYTE_LEVEL, SENTENCE_PIECE, tokenizer_of
from worker.text.grammar.alphabet import Alphabet

CONTROL = "<|end|>"
TEXTS = [
    *(bytes([byte]) for byte in range(32, 127)),
    b"the",
    b" an",
    b'"}',
    b'",',
    b': "',
    b"}, {",
    b'ed"',
    b"\xff",
    b"",
]


@pytest.fixture(scope="module")
def alphabet() -> Alphabet:
    """Of a vocabulary with a control token at the end, and tokens that end one thing and begin another."""
    texts = [*TEXTS, CONTROL.encode()]
    return Alphabet(
        SimpleNamespace(vocab_size=len(texts), token_bytes=texts.__getitem__, is_special=len(TEXTS).__eq__, end_ids={0})
    )


def ids_of(*texts: str) -> tuple[int, ...]:
    return tuple(TEXTS.index(text.encode()) if text != CONTROL else len(TEXTS) for text in texts)


@pytest.mark.parametrize("name", [BYTE_LEVEL, SENTENCE_PIECE])
def test_any_text_can_be_written_with_tokens_of_one_byte(name: str) -> None:
    alphabet = Alphabet(tokenizer_of(name))
    assert {alphabet.texts[token_id] for token_id in alphabet.ids.tolist()} >= {
        bytes([byte]) for byte in range(33, 127)
    }


def test_the_kind_of_a_token_is_what_it_has_that_begins_or_ends_a_value(alphabet: Alphabet) -> None:
    structures = {token: alphabet.structures[kind] for token, kind in zip(alphabet.texts, alphabet.kinds, strict=True)}
    assert structures[b"}, {"] == b",{}"
    assert structures[b': "'] == b'":'
    assert structures[b" an"] == structures[b"\xff"] == alphabet.structures[0] == b""


@pytest.mark.parametrize(
    ("closing", "written", "rest"),
    [
        ("the end", "the", " end"),
        ("the end", "t", "he end"),
        ("the end", " an", None),
        ("th", "the", None),
        ("", "t", None),
        (CONTROL, "<", "|end|>"),
    ],
)
def test_what_is_left_of_a_closing_is_told_by_what_was_written(
    alphabet: Alphabet, closing: str, written: str, rest: str | None
) -> None:
    found = alphabet.remainder(ids_of(*closing), *ids_of(written))
    assert found == (None if rest is None else ids_of(*rest))


def test_a_token_of_a_closing_that_was_begun_is_ended_in_tokens_of_one_byte(alphabet: Alphabet) -> None:
    assert alphabet.remainder(ids_of("the", " an", "}"), *ids_of("t")) == ids_of("h", "e", " an", "}")


def test_a_control_token_stands_for_itself_alone(alphabet: Alphabet) -> None:
    closing = ids_of(CONTROL, "}")
    assert alphabet.remainder(closing, *ids_of(CONTROL)) == ids_of("}")
    for other in (TEXTS.index(b"<"), TEXTS.index(b"\xff")):
        assert alphabet.remainder(closing, other) is None
    assert alphabet.remainder(ids_of(*CONTROL), *ids_of(CONTROL)) is None
    assert alphabet.likely_remainder(ids_of(*CONTROL), *ids_of(CONTROL)) == ids_of(*CONTROL)


@pytest.mark.parametrize(
    ("closing", "written", "rest"),
    [
        ('","price":0}', '"', ',"price":0}'),
        ('","price":0}', '",', '"price":0}'),
        ('0,"price":0}', ",", '"price":0}'),
        ('100,"price":0}', ",", '"price":0}'),
        ('100000,"price":0}', ",", '100000,"price":0}'),
        ('cancelled","price":0}', '"', ',"price":0}'),
        ('cancelled","price":0}', '",', '"price":0}'),
        ('cancelled":0}', '",', 'cancelled":0}'),
        ('a name of many tokens":0}', '"', 'a name of many tokens":0}'),
        ('":"","a":0}', ': "', '","a":0}'),
        ('},{"a":0}]', "}, {", '"a":0}]'),
        ("}", "]", "}"),
        ("", "]", ""),
    ],
)
def test_what_may_be_left_of_an_earlier_closing_is_behind_what_was_ended(
    alphabet: Alphabet, closing: str, written: str, rest: str
) -> None:
    assert alphabet.likely_remainder(ids_of(*closing), *ids_of(written)) == ids_of(*rest)


def test_a_token_may_hold_the_end_of_the_text_that_another_was_written_for(alphabet: Alphabet) -> None:
    assert alphabet.likely_remainder(ids_of(*"cancell", 'ed"', "}"), *ids_of('"')) == ids_of("}")
    assert alphabet.likely_remainder(ids_of("o", 'ed"', "}"), *ids_of('",')) == ids_of("o", 'ed"', "}")
