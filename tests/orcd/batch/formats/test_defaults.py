from __future__ import annotations

import pytest

from orcd.batch.formats.defaults import Defaults
from orcd.errors import InvalidRequest

USER = {"role": "user", "content": "rain"}
SYSTEM = {"role": "system", "content": "Be brief."}


def test_a_field_that_a_line_gives_wins_and_null_gives_nothing() -> None:
    defaults = Defaults({"max_tokens": 5, "temperature": 0.0})
    assert defaults.apply({"prompt": "a", "max_tokens": 9, "temperature": None}) == {
        "prompt": "a",
        "max_tokens": 9,
        "temperature": 0.0,
    }


def test_a_system_message_begins_conversations_that_have_none() -> None:
    defaults = Defaults(system="Be brief.")
    assert defaults.apply({"messages": [USER]})["messages"] == [SYSTEM, USER]
    for role in ("system", "developer"):
        own = [{"role": role, "content": "Rhyme."}, USER]
        assert defaults.apply({"messages": own})["messages"] == own


def test_the_system_message_of_a_response_is_its_instructions() -> None:
    defaults = Defaults(system="Be brief.")
    assert defaults.with_system({"input": "rain"})["instructions"] == "Be brief."
    assert defaults.with_system({"input": "rain", "instructions": "Rhyme."})["instructions"] == "Rhyme."


@pytest.mark.parametrize("fields", [{"prompt": "a"}, {"messages": "a"}])
def test_a_line_without_a_conversation_cannot_have_a_system_message(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match="system: the line has no messages"):
        Defaults(system="Be brief.").apply(fields)
