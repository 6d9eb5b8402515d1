"""What a job costs Redis is measured on a real Redis, with an engine that runs no model."""

from __future__ import annotations

import re

import pytest

from tests.bench.redis_cost.job import main


def test_the_cost_of_a_job_is_told_by_script_and_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--streams=4", "--seconds=6", "--prompt-tokens=8", "--output-tokens=40"]) == 0
    out = capsys.readouterr().out
    cost, rate = re.findall(r"a job costs (\d+) us of Redis, .* full at ([\d,]+) tokens/s", out)[0]
    assert 20 < int(cost) < 100_000
    assert int(rate.replace(",", "")) == pytest.approx(40e6 / int(cost), rel=0.05)
    rows = dict(re.findall(r"^\| (\w+) \| ([\d.]+) \|", out, re.MULTILINE))
    assert {"submit", "claim", "append", "evalsha", "xadd"} <= rows.keys()
    assert float(rows["set"]) > 0.5, "Celery's results are stored"
    assert float(rows["xadd"]) >= 2
