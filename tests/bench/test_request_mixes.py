import json
from pathlib import Path

import pytest

import tasks.demo
from tests.bench import request_mixes
from tests.bench.request_mixes import main

MODEL = str(Path(tasks.demo.__file__).parent / "haiku-q4_k_m.gguf")


def test_each_case_that_was_asked_for_has_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_mixes, "OUTPUT_TOKENS", 4)
    monkeypatch.setattr(request_mixes, "PROMPT_TOKENS", 8)
    monkeypatch.setattr(request_mixes, "PREFIX_TOKENS", 20)
    cases = "--cases=x greedy,x all of it,prefix,first 32"
    options = ["--device=cpu", "--streams=2", "--repeats=1", cases, "--json"]
    assert main([MODEL, *options]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["case"], row["unit"]) for row in rows] == [
        ("2 x greedy", "tok/s"),
        ("2 x all of it", "tok/s"),
        ("1 x greedy", "tok/s"),
        ("1 x all of it", "tok/s"),
        ("2 on one prefix of 20", "tok/s"),
        ("2 on a prefix each of 20", "tok/s"),
        ("first 32", "ms"),
    ]
    assert all(row["value"] > 0 for row in rows)
    assert main([MODEL, "--device=cpu", "--streams=2", "--repeats=1", "--cases=first 32"]) == 0
    assert "first 32" in capsys.readouterr().out.splitlines()[1]
