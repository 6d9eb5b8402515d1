"""``orcd bench queue``, with a load that is soon done."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from orcd.cli.command_line import run
from orcd.errors import ModelLoadFailed
from tasks.__main__ import cli
from tasks.local.bench import QueueBench


def test_every_concurrency_is_measured(shallow_model: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    load = ["--device", "cpu", "--prompt-tokens", "4", "--output-tokens", "40", "--concurrency", "1,3", "--json"]
    assert run(cli, ["bench", "queue", str(shallow_model), *load]) == 0
    measurements = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    assert [each["concurrency"] for each in measurements] == [1, 3]
    for each in measurements:
        assert (each["model"], each["device"]) == (shallow_model.name, "cpu")
        assert (each["prompt_tokens"], each["output_tokens"]) == (4, 40)
        expected = each["concurrency"] * 40 / each["total_s"]
        assert each["output_tokens_per_s"] == pytest.approx(expected, rel=0.02)
        assert 0 < each["ttft_p50_ms"] <= each["ttft_p99_ms"] < each["total_s"] * 1000 + 1


def test_a_model_that_is_no_gguf_is_refused_before_anything_starts(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").write_bytes(b"nothing")
    with pytest.raises(ModelLoadFailed):
        QueueBench(tmp_path / "no.gguf", "cpu", 4, 5)
