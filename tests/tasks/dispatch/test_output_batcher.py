"""Which outputs wait for the next batch, and which for a few milliseconds only."""

from __future__ import annotations

import pytest

from tasks.dispatch import output_batcher
from tasks.dispatch.output_batcher import MAX_OUTPUTS, MAX_THROTTLE_S, OutputBatcher, throttle_interval_s
from worker.contract import TokenOutput


@pytest.fixture
def batcher() -> OutputBatcher:
    """In a throttle interval of a minute."""
    batcher = OutputBatcher()
    batcher.throttle(60)
    return batcher


def add(batcher: OutputBatcher, *outputs: TokenOutput) -> None:
    batcher.add(outputs)


def test_outputs_of_several_steps_are_joined_by_choice_and_an_error_comes_after_the_tokens(
    batcher: OutputBatcher,
) -> None:
    add(batcher, TokenOutput("a", 0, (1,), None, b"one "), TokenOutput("b", 0, (4,)))
    add(batcher, TokenOutput("a", 0, (2, 3), "length", b"two three "), TokenOutput("a", 1, (5,)))
    add(batcher, TokenOutput("b", 0, (), "error", error_code="VRAM_OOM", error_message="full"))
    assert batcher.wait_s() == 0.0
    assert batcher.take_all() == [
        TokenOutput("a", 0, (1, 2, 3), "length", b"one two three "),
        TokenOutput("b", 0, (4,)),
        TokenOutput("a", 1, (5,)),
        TokenOutput("b", 0, (), "error", error_code="VRAM_OOM", error_message="full"),
    ]
    assert batcher.wait_s() is None
    assert batcher.take_all() == batcher.take_due() == batcher.take_batch() == []


def test_what_is_due_can_be_taken_before_the_rest_and_is_whole(batcher: OutputBatcher) -> None:
    add(batcher, TokenOutput("a", 0, (1,)), TokenOutput("b", 0, (4,)), TokenOutput("c", 0, (6,)))
    assert not batcher.has_due
    add(batcher, TokenOutput("b", 0, (5,), "stop"), TokenOutput("c", 0, (), "error", error_code="VRAM_OOM"))
    add(batcher, TokenOutput("a", 0, (2,)))
    assert batcher.has_due
    assert batcher.take_due() == [
        TokenOutput("b", 0, (4, 5), "stop"),
        TokenOutput("c", 0, (6,)),
        TokenOutput("c", 0, (), "error", error_code="VRAM_OOM"),
    ]
    assert not batcher.has_due
    assert batcher.take_due() == []
    assert batcher.take_all() == [TokenOutput("a", 0, (1, 2))]


def test_the_first_output_of_a_request_is_due_when_it_comes(batcher: OutputBatcher) -> None:
    for request_id in ("a", "b", "c"):
        batcher.expect_first(request_id)
    batcher.forget("b")
    add(batcher, TokenOutput("a", 0, (1,)), TokenOutput("a", 1, (2,)), TokenOutput("b", 0, (3,)))
    assert batcher.has_due
    add(batcher, TokenOutput("a", 0, (4,)))
    assert batcher.take_due() == [TokenOutput("a", 0, (1, 4))]
    add(batcher, TokenOutput("a", 0, (5,)))
    assert not batcher.has_due, "only its first output"
    add(batcher, TokenOutput("c", 0, (6,)))
    assert batcher.take_due() == [TokenOutput("c", 0, (6,))]
    assert batcher.take_all() == [
        TokenOutput("a", 1, (2,)),
        TokenOutput("b", 0, (3,)),
        TokenOutput("a", 0, (5,)),
    ]


def test_what_nobody_listens_to_is_taken_once_in_an_interval(
    batcher: OutputBatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output_batcher, "QUIET_INTERVAL_S", 60)
    batcher.set_quiet("a", is_quiet=True)
    add(batcher, TokenOutput("a", 0, (1,)))
    assert batcher.wait_s() == 0.0
    assert batcher.take_batch() == [TokenOutput("a", 0, (1,))], "the last time is long ago"
    add(batcher, TokenOutput("a", 0, (2,)), TokenOutput("a", 1, (7,)))
    assert 30 < (batcher.wait_s() or 0) <= 60
    add(batcher, TokenOutput("b", 0, (3,)))
    assert batcher.wait_s() == 0.0
    assert batcher.take_batch() == [TokenOutput("b", 0, (3,))]
    assert batcher.take_batch() == []
    add(batcher, TokenOutput("a", 0, (4,), "stop"))
    assert batcher.wait_s() == 0.0, "the last output of a choice waits for nothing"
    assert batcher.take_batch() == [TokenOutput("a", 0, (2, 4), "stop")]
    batcher.set_quiet("a", is_quiet=False)
    assert batcher.take_batch() == [TokenOutput("a", 1, (7,))]


def test_of_many_streams_a_batch_takes_some_in_turn_and_what_is_due_besides(batcher: OutputBatcher) -> None:
    names = [str(number) for number in range(2 * MAX_OUTPUTS + 3)]
    batcher.set_quiet(names[-1], is_quiet=True)
    for token in (1, 2):
        add(batcher, *(TokenOutput(name, 0, (token,)) for name in names))
    assert [output.request_id for output in batcher.take_batch()] == names[:MAX_OUTPUTS]
    add(batcher, TokenOutput(names[0], 0, (3,)), TokenOutput(names[-2], 0, (3,), "stop"))
    assert batcher.wait_s() == 0.0
    second = [output.request_id for output in batcher.take_batch()]
    assert second == [names[-2], *names[MAX_OUTPUTS : 2 * MAX_OUTPUTS]]
    assert [output.request_id for output in batcher.take_batch()] == [names[-3], names[-1]], "the quiet one, too"
    assert batcher.take_batch() == [TokenOutput(names[0], 0, (3,))]
    assert batcher.wait_s() is None


@pytest.mark.parametrize(("worked_s", "interval_s"), [(0.0, 0.0), (0.002, 0.02), (0.5, MAX_THROTTLE_S)])
def test_the_throttle_interval_grows_with_the_work_up_to_a_limit(worked_s: float, interval_s: float) -> None:
    assert throttle_interval_s(worked_s) == pytest.approx(interval_s)
