"""Outputs that wait for the next frame."""

from __future__ import annotations

from worker.contract import FinishReason, Sampling, TokenOutput, Usage
from worker.engine.output_buffer import OutputBuffer
from worker.engine.sequence import Chunk, Sequence

FULL = TokenOutput("b", 0, (), "error", error_code="VRAM_OOM", error_message="full")


def sequence(request_id: str, choice: int = 0) -> Sequence:
    return Sequence(request_id, choice, Sampling(max_tokens=9), 0, [1, 2], num_prompt=2, max_output=9)


def add(buffer: OutputBuffer, sequence: Sequence, token_id: int, logprobs: bytes | None = None) -> None:
    sequence.token_ids.append(token_id)
    buffer.add(sequence, logprobs)


def end(ended: Sequence, reason: FinishReason) -> None:
    ended.finish_reason = reason


def test_tokens_of_several_steps_are_one_output_of_a_choice_and_an_error_comes_after_the_tokens() -> None:
    buffer = OutputBuffer()
    a, b, other = sequence("a"), sequence("b"), sequence("a", 1)
    a.num_cached = 16
    add(buffer, a, 1, b"one ")
    add(buffer, b, 4)
    add(buffer, a, 2, b"two ")
    end(a, "length")
    add(buffer, a, 3, b"three ")
    add(buffer, other, 5)
    end(b, "error")
    buffer.answer([FULL])
    assert buffer and buffer.take_all() == [
        TokenOutput("a", 0, (1, 2, 3), "length", b"one two three ", usage=Usage(), cached_tokens=16),
        TokenOutput("b", 0, (4,)),
        TokenOutput("a", 1, (5,)),
        FULL,
    ]
    assert not buffer and not buffer.has_due and buffer.take_all() == []


def test_choices_that_have_ended_can_be_taken_before_the_rest_and_whole() -> None:
    buffer = OutputBuffer()
    a, b, c = sequences = [sequence(name) for name in "abc"]
    for each in sequences:
        add(buffer, each, 0)
    assert len(buffer.take_all()) == 3
    for each, token_id in ((a, 1), (c, 4), (b, 6)):
        add(buffer, each, token_id)
    assert not buffer.has_due
    end(c, "stop")
    add(buffer, c, 5)
    end(b, "error")
    buffer.answer([FULL])
    add(buffer, a, 2)
    assert buffer.has_due
    assert buffer.take_due() == [
        TokenOutput("c", 0, (4, 5), "stop", usage=Usage()),
        TokenOutput("b", 0, (6,)),
        FULL,
    ]
    assert not buffer.has_due and buffer.take_due() == []
    add(buffer, a, 3)
    assert buffer.take_all() == [TokenOutput("a", 0, (1, 2, 3))]


def test_the_first_output_of_a_choice_can_be_taken_before_the_rest_and_its_next_ones_stay() -> None:
    buffer = OutputBuffer()
    old, new = sequences = [sequence(name) for name in ("old", "new")]
    chunks = [Chunk(each, 1, True) for each in sequences]
    add(buffer, old, 1)
    buffer.take_all()
    add(buffer, new, 2)
    for token_id in (3, 4):
        for each in sequences:
            each.token_ids.append(token_id)
        buffer.add_all(chunks)
        assert buffer.take_due() == ([TokenOutput("new", 0, (2, 3))] if token_id == 3 else [])
    assert buffer.take_all() == [TokenOutput("old", 0, (3, 4)), TokenOutput("new", 0, (4,))]


def test_that_a_choice_was_aborted_comes_after_its_tokens() -> None:
    buffer, a = OutputBuffer(), sequence("a")
    add(buffer, a, 1)
    end(a, "abort")
    aborted = TokenOutput("a", 0, (), "abort", usage=Usage())
    buffer.answer([aborted])
    assert buffer.take_due() == [TokenOutput("a", 0, (1,)), aborted]


def test_log_probabilities_of_a_prompt_come_once_with_its_first_token() -> None:
    buffer, a = OutputBuffer(), sequence("a")
    a.prompt_logprobs, a.num_reported = bytearray(b"four"), 1
    add(buffer, a, 1)
    add(buffer, a, 2)
    assert buffer.take_all() == [TokenOutput("a", 0, (1, 2), prompt_logprobs=b"four")]
    add(buffer, a, 3)
    assert buffer.take_all() == [TokenOutput("a", 0, (3,))]
