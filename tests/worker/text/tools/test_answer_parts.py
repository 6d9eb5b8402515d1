"""Pieces of calls are joined, one a call."""

from __future__ import annotations

from worker.text.tools.answer_parts import CallPiece, joined


def test_pieces_of_the_same_call_become_one() -> None:
    pieces = [CallPiece(0, "f"), CallPiece(0, arguments="{"), CallPiece(0, arguments="}"), CallPiece(1, "g")]
    assert joined(pieces) == (CallPiece(0, "f", "{}"), CallPiece(1, "g"))
    assert joined([]) == ()
