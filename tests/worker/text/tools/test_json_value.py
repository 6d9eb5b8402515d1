"""The end of a JSON value is found by its brackets, wherever the text is cut."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.text.tools.json_value import JsonValue

VALUES = st.recursive(
    st.none() | st.integers() | st.text(st.sampled_from('a"\\{}[]é')),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200)
@given(st.dictionaries(st.text(max_size=3), VALUES, max_size=3), st.booleans())
def test_an_object_ends_behind_its_own_bracket_at_every_split(value: dict[str, object], ascii_only: bool) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert JsonValue().end(text + '}"]') == len(text)
    for cut in range(1, len(text)):
        halves = JsonValue()
        assert halves.end(text[:cut]) is None
        assert halves.end(text[cut:] + "}") == len(text) - cut


@pytest.mark.parametrize("text", ["{", '{"}', '{"\\"}', "{[}", '{"a": "{}'])
def test_a_value_that_goes_on_has_no_end(text: str) -> None:
    assert JsonValue().end(text) is None
