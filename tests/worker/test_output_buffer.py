"""Outputs that wait for the next frame."""

from __future__ import annotations

from worker.contract import Outputs, TokenOutput
from worker.output_buffer import OutputBuffer


def buffered(*steps: list[TokenOutput]) -> OutputBuffer:
    buffer = OutputBuffer()
    for step in steps:
        buffer.add(step)
    return buffer


def test_outputs_of_several_steps_are_joined_by_choice_and_an_error_comes_after_the_tokens() -> None:
    buffer = buffered(
        [TokenOutput("a", 0, (1,), None, b"one "), TokenOutput("b", 0, (4,))],
        [TokenOutput("a", 0, (2, 3), "length", b"two three "), TokenOutput("a", 1, (5,))],
        [TokenOutput("b", 0, (), "error", error_code="VRAM_OOM", error_message="full")],
    )
    expected = (
        TokenOutput("a", 0, (1, 2, 3), "length", b"one two three "),
        TokenOutput("b", 0, (4,)),
        TokenOutput("a", 1, (5,)),
        TokenOutput("b", 0, (), "error", error_code="VRAM_OOM", error_message="full"),
    )
    assert buffer.take_all() == Outputs(expected)
    assert not buffer and not buffer.has_final and buffer.take_all() == Outputs(())


def test_choices_that_have_ended_can_be_taken_before_the_rest_and_whole() -> None:
    buffer = buffered(
        [TokenOutput("a", 0, (1,)), TokenOutput("b", 0, (4,)), TokenOutput("c", 0, (6,))],
        [TokenOutput("b", 0, (5,), "stop"), TokenOutput("c", 0, (), "error", error_code="VRAM_OOM")],
        [TokenOutput("a", 0, (2,))],
    )
    assert buffer.has_final
    ended = (
        TokenOutput("b", 0, (4, 5), "stop"),
        TokenOutput("c", 0, (6,)),
        TokenOutput("c", 0, (), "error", error_code="VRAM_OOM"),
    )
    assert buffer.take_finished() == Outputs(ended)
    assert not buffer.has_final and buffer.take_finished() == Outputs(())
    assert buffer.take_all() == Outputs((TokenOutput("a", 0, (1, 2)),))
