"""Deltas of calls are joined, one a call."""

from __future__ import annotations

from worker.text.tools.answer_parts import CallDelta, joined


def test_deltas_of_the_same_call_become_one() -> None:
    deltas = [CallDelta(0, "f"), CallDelta(0, arguments="{"), CallDelta(0, arguments="}"), CallDelta(1, "g")]
    assert joined(deltas) == (CallDelta(0, "f", "{}"), CallDelta(1, "g"))
    assert joined([]) == ()
