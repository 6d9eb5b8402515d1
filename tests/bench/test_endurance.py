from itertools import count
from pathlib import Path

import pytest

from tests.bench.endurance import Endurance, main
from tests.worker.tiny_model import write_tiny_model

LOAD = ["--device=cpu", "--streams=4", "--output-tokens=12", "--requests=60"]


def test_an_engine_that_is_well_passes_every_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(write_tiny_model(tmp_path / "tiny.gguf")), *LOAD]) == 0
    out = capsys.readouterr().out
    assert "4 with the same ids" in out
    assert "60 random requests" in out
    assert "0 blocks leaked" in out


def test_other_ids_in_the_second_run_are_named_and_the_exit_code_is_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = count()
    monkeypatch.setattr(
        Endurance, "_generate", lambda self, adds: {("r0", 0): [7] * 12, ("r1", 0): [7] * 11 + [next(runs)]}
    )
    assert main([str(write_tiny_model(tmp_path / "tiny.gguf")), *LOAD]) == 1
    assert capsys.readouterr().out.splitlines()[-1].endswith("other ids in the second run: r1")
