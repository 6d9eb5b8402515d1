"""What the benchmark says of what it saw; `tests/tasks/dispatch` has six such prompts on a real worker."""

from __future__ import annotations

import pytest

from tests.bench.queue import large_prompts as module
from tests.bench.queue.large_prompts import NUM_CHARACTERS, Outcome, Times, large_prompts, main


def test_there_are_six_prompts_of_four_megabytes() -> None:
    texts = [fields.get("prompt") or fields["messages"][0]["content"] for fields in large_prompts()]
    assert [len(text) for text in texts] == [NUM_CHARACTERS] * 6


@pytest.mark.parametrize(("problems", "code"), [([], 0), (["a prompt ended POISONED"], 1)])
def test_times_are_shown_and_the_exit_code_says_whether_all_was_right(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], problems: list[str], code: int
) -> None:
    alone, meanwhile = Times([0.02] * 100, 0.011, 0.01), Times([0.03] * 99 + [0.5], 0.04, 0.012)
    monkeypatch.setattr(module, "measure", lambda *_: Outcome(alone, meanwhile, 9.5, problems))
    assert main([]) == code
    said = capsys.readouterr().out
    assert "streams alone: gaps between tokens p50 20 ms, p99 20 ms, most 20 ms" in said
    assert "the last one refused after 9.5 s: gaps between tokens p50 30 ms" in said
    assert "stood still for at most 40 ms, and computed for at most 12 ms then" in said
    assert all(problem in said for problem in problems)
