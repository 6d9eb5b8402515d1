import json
from pathlib import Path

import pytest

from orcd.errors import InvalidRequest
from tests.orcd.cli.command_line import one_error
from tests.worker.tiny_model import write_tiny_model
from worker.commands.bench import Load, measure_all
from worker.commands.main import run
from worker.settings import Settings


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf")


def test_json_is_one_object_for_each_concurrency_with_plausible_figures(
    tiny_model: Path, capsys: pytest.CaptureFixture[str]
):
    options = ["--device=cpu", "--prompt-tokens=20", "--output-tokens=10", "--concurrency=1,3", "--json"]
    assert run(["bench", "engine", str(tiny_model), *options]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["concurrency"], second["concurrency"]) == (1, 3)
    for figures in (first, second):
        assert (figures["model"], figures["device"]) == ("tiny.gguf", "cpu")
        assert figures["device_name"] == "cpu"
        assert figures["output_tokens_per_s"] == pytest.approx(
            figures["concurrency"] * 10 / figures["total_s"], rel=0.2
        )
        assert figures["prompt_tokens_per_s"] == pytest.approx(
            figures["concurrency"] * 20_000 / figures["ttft_p99_ms"], rel=0.2
        )
        assert 0 < figures["ttft_p50_ms"] <= figures["ttft_p99_ms"] <= figures["total_s"] * 1000 + 1
        assert 0 < figures["inter_token_p50_ms"] <= figures["inter_token_p99_ms"]


def test_without_json_it_prints_a_table(tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--device=cpu", "--prompt-tokens=4", "--output-tokens=1", "--concurrency=2,1"]
    assert run(["bench", "engine", str(tiny_model), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "prompt tok/s" in lines[1]
    assert [line.split()[0] for line in lines[2:]] == ["2", "1"]


def test_keys_and_values_of_8_bits_are_named(tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    options = ["--device=cpu", "--prompt-tokens=4", "--output-tokens=1", "--concurrency=1", "--kv-cache-type=q8"]
    assert run(["bench", "engine", str(tiny_model), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["kv_cache_type"] == "q8"
    assert run(["bench", "engine", str(tiny_model), *options]) == 0
    assert "keys and values of q8" in capsys.readouterr().out


def test_a_load_beyond_the_context_is_refused(tiny_model: Path):
    with pytest.raises(InvalidRequest, match="context of 128"):
        list(measure_all(Settings(model=str(tiny_model), device="cpu"), Load(100, 29), [1]))


def test_a_device_that_is_not_there_is_said(tiny_model: Path, capsys: pytest.CaptureFixture[str]):
    assert run(["bench", "engine", str(tiny_model), "--device=cuda:7"]) == 1
    assert "cpu" in one_error(capsys, "MODEL_LOAD_FAILED")


@pytest.mark.parametrize(
    "option", ["--concurrency=1,x", "--concurrency=1,,2", "--concurrency=0", "--prompt-tokens=-1", "--device"]
)
def test_wrong_usage_names_the_option(option: str, capsys: pytest.CaptureFixture[str]):
    assert run(["bench", "engine", "m.gguf", option]) == 2
    assert option.partition("=")[0] in one_error(capsys, "INVALID_REQUEST")
