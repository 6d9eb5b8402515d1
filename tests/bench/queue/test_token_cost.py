"""What a token costs is told by step, and log probabilities take a third of the bytes."""

from __future__ import annotations

import re

import pytest

from tests.bench.queue.token_cost import main


def bytes_by_name(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, int]:
    """What is said of bytes, after a look at the rest."""
    assert main(["--jobs=2", "--rounds=2", *arguments]) == 0
    rows = dict(re.findall(r"^\| ([^|]+) \| ([\d.]+) \|$", capsys.readouterr().out, re.MULTILINE))
    us = {name: float(number) for name, number in rows.items() if "." in number}
    whole = us.pop("the Celery process, all")
    of_clients = sum(taken for name, taken in us.items() if name.startswith("a client"))
    assert whole == pytest.approx(sum(us.values()) - of_clients, abs=0.05)
    return {name: int(number) for name, number in rows.items() if "." not in number}


def test_log_probabilities_take_a_third_of_the_bytes_in_logs(capsys: pytest.CaptureFixture[str]) -> None:
    silent = bytes_by_name(capsys)
    packed = bytes_by_name(capsys, "--logprobs=5")
    lists = bytes_by_name(capsys, "--logprobs=5", "--lists")
    assert silent["token log"] < 15
    assert packed["token log"] <= 131
    assert lists["token log"] > 290
    assert packed["Celery's result"] == lists["Celery's result"] > 290
