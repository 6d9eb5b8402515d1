"""Every step of a job has a cost."""

from __future__ import annotations

import re

import pytest

from tests.bench.redis_cost.steps import main


@pytest.mark.parametrize("options", [[], ["--logprobs=1"], ["--logprobs=1", "--lists"]])
def test_the_cost_of_each_step_is_told_and_of_all(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--jobs=16", "--rounds=3", *options]) == 0
    out = capsys.readouterr().out
    rows = {name: float(us) for name, us in re.findall(r"^\| ([^|]+) \| ([\d.]+) \|$", out, re.MULTILINE)}
    whole = rows.pop("all")
    assert len(rows) == 9
    assert min(rows.values()) > 0
    assert sum(rows.values()) == pytest.approx(whole, abs=1)
