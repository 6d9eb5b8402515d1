"""Calls of tools, cut into deltas anywhere and put together again."""

from __future__ import annotations

import re

import pytest

from orcd.tool_calls import ToolCall, ToolCallDelta, behind, joined, length, tool_call_id

FIRST, SECOND = ToolCallDelta(0, "id0", "f", '{"a"'), ToolCallDelta(1, "id1", "g")
DELTAS = [FIRST, ToolCallDelta(0, arguments=": 1}"), SECOND, ToolCallDelta(1, arguments="{}")]
CALLS = [ToolCall("id0", "f", '{"a": 1}'), ToolCall("id1", "g", "{}")]


def test_deltas_add_up_to_whole_calls():
    assert joined(DELTAS) == CALLS
    assert joined([]) == []


@pytest.mark.parametrize("seen", range(1 + 8 + 1 + 2 + 1))
def test_a_part_that_was_seen_is_taken_off_at_any_character(seen):
    rest = behind(DELTAS, seen)
    assert length(rest) == length(DELTAS) - seen
    assert [delta.name for delta in rest if delta.id] == ["f", "g"][(seen > 0) + (seen > 9) :]
    arguments = "".join(delta.arguments for delta in DELTAS)
    taken = seen - (seen > 0) - (seen > 9)
    assert "".join(delta.arguments for delta in rest) == arguments[taken:]


def test_what_goes_on_behind_a_cut_is_the_same_call():
    assert behind(DELTAS, 3) == [ToolCallDelta(0, arguments='a"'), *DELTAS[1:]]
    assert behind(DELTAS, 1) == [ToolCallDelta(0, arguments='{"a"'), *DELTAS[1:]]
    assert behind(DELTAS, 5) == DELTAS[1:]


def test_an_id_is_always_the_same_and_in_a_form_that_mistrals_templates_take():
    assert tool_call_id("job", 0, 0) == tool_call_id("job", 0, 0) == "djCnOsyHQ"
    ids = {tool_call_id(job, choice, index) for job in "ab" for choice in range(3) for index in range(50)}
    assert len(ids) == 300
    assert all(re.fullmatch("[A-Za-z0-9]{9}", each) for each in ids)
