"""The GPU benchmark, on the CPU and a model of a few kilobytes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.bench.gpu import decode_rate, heading, main, measure, read_arguments
from tests.worker.tiny_model import write_tiny_model

SHORT = ["--device=cpu", "--concurrency=1,3", "--prompt-tokens=8", "--output-tokens=5", "--prefill-tokens=16"]


def test_a_models_line_has_a_cell_for_each_column(tmp_path: Path) -> None:
    arguments = read_arguments(SHORT)
    cells = measure("tiny", write_tiny_model(tmp_path / "tiny.gguf"), arguments)
    columns = heading(arguments)
    assert len(cells) == len(columns) == 6
    assert columns[-1] == "prefill, 64 x 16, tok/s"
    assert all(re.fullmatch(r"[\d,.]+( / 10)?", cell) for cell in cells[1:])


def test_rows_can_be_chosen(tmp_path: Path) -> None:
    arguments = read_arguments([*SHORT, "--rows=prefill"])
    assert len(measure("tiny", write_tiny_model(tmp_path / "tiny.gguf"), arguments)) == len(heading(arguments)) == 2


def test_the_rate_of_decoding_leaves_the_prefill_out() -> None:
    assert decode_rate({"output_tokens": 11, "total_s": 1.5, "ttft_p50_ms": 500.0}) == 10


@pytest.mark.parametrize("option", ["--models=llama-9", "--rows=load,all"])
def test_what_there_is_none_of_is_wrong_usage(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([option])
    assert caught.value.code == 2
    assert "there are" in capsys.readouterr().err
