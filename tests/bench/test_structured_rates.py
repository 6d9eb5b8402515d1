from __future__ import annotations

from pathlib import Path

from tests.bench.structured_rates import Rate, measure_rates, rate_lines


def test_streams_are_free_then_a_few_then_all_constrained(demo_model: Path) -> None:
    rates, again = measure_rates(demo_model, "cpu", 4, output_tokens=4, repeats=2, parts=True)
    assert len(again) == 3 and again[0].parts_ms
    assert [rate.num_constrained for rate in rates] == [0, 1, 4]
    assert all(rate.tokens_per_s > 0 for rate in rates)
    assert rates[0].forced_share == 0 < rates[2].forced_share


def test_a_line_compares_a_rate_with_that_of_free_streams() -> None:
    lines = rate_lines([Rate(0, 2000.0, 0.0), Rate(256, 1000.0, 0.125)], 256)
    assert "2,000 tok/s, 100.0 %" in lines[0]
    assert "50.0 % of free ones; 12.5 % of the constrained" in lines[1]
