from __future__ import annotations

from tests.chaos.faults.malformed import malformed_messages


def test_there_are_many_kinds_and_the_same_each_time() -> None:
    messages = malformed_messages()
    assert len(messages) >= 57
    assert len(set(messages.values())) == len(messages)
    assert messages == malformed_messages()
