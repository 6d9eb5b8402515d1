import pytest

from worker.text.grammar.places.lexemes import MAX_KNOWN_BYTES, read_lexemes


@pytest.mark.parametrize(
    ("text", "outer", "is_name_next", "found"),
    [
        (b'{"a": [1, "x', b"", False, (0, b'{"a":[0,', (0, 5), b'"x', b"{[", False)),
        (b'"name" :"text"', b"{", True, (0, b'"name":""', (), b"", b"{", False)),
        (b"12", b"[", False, (0, b"", (), b"12", b"[", False)),
        (b" \n", b"[", False, (0, b"", (), b"  ", b"[", False)),
        (b'12 ,"', b"{", False, (0, b"0,", (), b'"', b"{", True)),
        (b'"x"} ,{', b"[{", False, (1, b"{},{", (3,), b"", b"[{", True)),
        (b"]}]", b"[{[", False, (3, b"[]", (), b"", b"", False)),
        (b'{"a":{"b":1},"c":[]', b"", False, (0, b'{"a":{},"c":[]', (0,), b"", b"{", False)),
    ],
)
def test_of_a_text_the_outline_has_its_structure_and_names_and_of_what_has_ended_the_brackets(
    text: bytes, outer: bytes, is_name_next: bool, found: tuple[object, ...]
) -> None:
    assert read_lexemes(text, outer, is_name_next) == found


def test_lexemes_of_long_texts_are_the_same_and_not_kept() -> None:
    text = b'"' + b"x" * MAX_KNOWN_BYTES
    assert read_lexemes(text, b"{", True).text == text
    assert read_lexemes(text + b'":', b"{", True).outline == text + b'":'
