"""Whether a worker could run here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.worker.model.tiny import write_tiny
from worker.commands import doctor, ram_plan
from worker.commands.doctor import checks
from worker.commands.main import run
from worker.settings import Settings


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_tiny("qwen2", tmp_path / "tiny.gguf")


def outcomes(settings: Settings) -> dict[str, str]:
    return {check.name: check.outcome for check in checks(settings)}


def test_a_model_that_fits_the_cpu_is_good(model: Path) -> None:
    assert outcomes(Settings(device="cpu", model=str(model))) == {"device": "good", "model": "good"}


def test_a_gpu_that_is_not_there_is_a_problem_that_says_what_to_do(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    device, cache, found = checks(Settings(device="cuda:99", model=str(model)))
    assert (device.name, device.outcome) == ("device", "problem")
    assert device.found and device.advice
    assert (cache.outcome, cache.found) == ("good", str(tmp_path / "orcd" / "kernels"))
    assert found.outcome == "good", "planned for a GPU that stands in for it"


def test_a_cache_without_room_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(doctor, "CACHE_BYTES", 1 << 62)
    assert outcomes(Settings(device="cuda:99"))["kernel cache"] == "warning"


def test_what_stands_in_the_way_of_a_model_is_named(model: Path, tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    assert outcomes(Settings(device="cpu"))["model"] == "warning"
    assert outcomes(Settings(device="cpu", model=str(tmp_path / "missing.gguf")))["model"] == "problem"
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(model.read_bytes().replace(b"blk.1.ffn_down.weight", b"blk.1.ffn_doun.weight"))
    [found] = [check for check in checks(Settings(device="cpu", model=str(damaged))) if check.name == "model"]
    assert "blk.1.ffn_down.weight" in found.found
    monkeypatch.setattr(ram_plan, "available_ram", lambda: 1 << 20)
    [found] = [check for check in checks(Settings(device="cpu", model=str(model))) if check.name == "model"]
    assert (found.outcome, "1 MiB are available" in found.found) == ("problem", True)


def test_what_is_odd_in_a_vocabulary_is_a_warning(model: Path) -> None:
    key = b"tokenizer.ggml.eos_token_id" + b"\x04\0\0\0"
    before, after = model.read_bytes().split(key)
    model.write_bytes(before + key + b"\xff\xff\xff\xff" + after[4:])
    [found] = [check for check in checks(Settings(device="cpu", model=str(model))) if check.name == "model"]
    assert (found.outcome, "eos_token_id is 4294967295" in found.found) == ("warning", True)


def test_a_tokenizer_that_a_worker_is_given_is_checked_in_place_of_the_files_own(model: Path, tmp_path: Path) -> None:
    settings = Settings(device="cpu", model=str(model), tokenizer=str(tmp_path / "missing.json"))
    [found] = [check for check in checks(settings) if check.name == "model"]
    assert (found.outcome, "missing.json" in found.found) == ("problem", True)


def test_it_prints_an_object_a_line(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--device", "cpu", "--model", str(model)]) == 0
    names = [json.loads(line)["name"] for line in capsys.readouterr().out.splitlines()]
    assert names == ["device", "model"]
