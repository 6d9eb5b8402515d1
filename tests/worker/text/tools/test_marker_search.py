"""Markers are found across the borders of pieces, with the whitespace before them."""

from __future__ import annotations

import pytest

from worker.text.tools.marker_search import MAX_SPACE, MarkerSearch

SEARCH = MarkerSearch(["<call>", "</call>", "[A]"])


@pytest.mark.parametrize(
    ("text", "split"),
    [
        ("one <call>two", ("one", " <call>", "two")),
        ("one </call>[A]", ("one", " </call>", "[A]")),
        ("one two", ("one two", "", "")),
        ("one \n", ("one", "", " \n")),
        ("one <cal", ("one", "", " <cal")),
        ("one <cal </c", ("one <cal", "", " </c")),
        ("<<call", ("<", "", "<call")),
        ("", ("", "", "")),
    ],
)
def test_a_text_is_cut_at_the_first_marker_or_where_one_may_begin(text: str, split: tuple[str, str, str]) -> None:
    assert SEARCH.split(text) == split


def test_only_so_much_whitespace_is_held_back() -> None:
    run = " " * (MAX_SPACE + 3)
    assert SEARCH.split(run) == ("   ", "", " " * MAX_SPACE)
    assert SEARCH.split(run + "[A]") == ("   ", " " * MAX_SPACE + "[A]", "")


@pytest.mark.parametrize(
    ("text", "passes"), [("plain", True), ("a ", False), ("a < b", False), ("[", False), ("", True)]
)
def test_a_text_without_the_first_character_of_a_marker_passes(text: str, passes: bool) -> None:
    assert SEARCH.passes(text) is passes
