from __future__ import annotations

from tests.bench.structured_host import SHARED, Outcome, measure
from tests.worker.text.grammar.compilers import BYTE_LEVEL, tokenizer_of


def test_the_parts_of_a_step_are_told_apart() -> None:
    outcome = measure(tokenizer_of(BYTE_LEVEL), num_streams=4, num_constrained=3, output_tokens=6)
    assert outcome.num_tokens >= 4 * 6
    assert outcome.own_ms["masks"] > 0 < outcome.own_ms["tokens taken"]
    assert outcome.own_ms["launch and upload"] > 0 < outcome.own_ms["commit, with forced tokens"]
    assert [*outcome.shared_ms] == [*SHARED]


def test_threads_share_a_part_of_a_step() -> None:
    outcome = Outcome(100, {"plan": 1.0, "commit": 2.0}, {"masks": 12.0, "tokens taken": 0.0})
    assert [outcome.step_ms(threads) for threads in (1, 12)] == [15.0, 4.0]
    assert outcome.lines()[-1] == (
        "a step, computed from these: 15.00 ms with 1, 9.00 ms with 2, 6.00 ms with 4, 4.00 ms with 12 such threads"
    )
