"""``orcd logits``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.models.files import SMALL
from tests.orcd.cli.command_line import one_error
from tests.worker.model.tiny import write_tiny
from worker.commands import logits
from worker.commands.logits import CHUNK_TOKENS
from worker.commands.main import run


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny("qwen2", tmp_path_factory.mktemp("model") / "tiny.gguf")


def write_logits(model: Path, ids: object, tmp_path: Path, device: str = "cpu") -> int:
    """Run the command on ``ids``, with the result in ``out.npz``; its exit code."""
    (tmp_path / "ids.json").write_text(json.dumps(ids))
    files = ["--ids", str(tmp_path / "ids.json"), "--out", str(tmp_path / "out.npz")]
    return run(["logits", str(model), *files, "--device", device])


def logits_of(model: Path, ids: object, tmp_path: Path) -> dict[str, np.ndarray]:
    assert write_logits(model, ids, tmp_path) == 0
    with np.load(tmp_path / "out.npz") as arrays:
        return dict(arrays)


def test_each_list_of_ids_gives_an_array_of_logits(model: Path, tmp_path: Path) -> None:
    long = [number % 300 for number in range(CHUNK_TOKENS + 3)]
    arrays = logits_of(model, [[1, 2, 3], long, [7]], tmp_path)
    assert {name: (array.shape, array.dtype) for name, array in arrays.items()} == {
        "logits_0": ((3, 593), np.float32),
        "logits_1": ((CHUNK_TOKENS + 3, 593), np.float32),
        "logits_2": ((1, 593), np.float32),
    }
    np.testing.assert_array_equal(logits_of(model, [long[:3]], tmp_path)["logits_0"], arrays["logits_1"][:3])


def test_states_go_from_chunk_to_chunk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [number % 250 for number in range(40)]
    whole = logits_of(SMALL["qwen35-q4_k_m"], [ids], tmp_path)["logits_0"]
    monkeypatch.setattr(logits, "CHUNK_TOKENS", 7)
    np.testing.assert_array_equal(logits_of(SMALL["qwen35-q4_k_m"], [ids], tmp_path)["logits_0"], whole)


def test_keys_and_values_of_8_bits_give_other_logits_near_by(model: Path, tmp_path: Path) -> None:
    ids = [number % 300 for number in range(40)]
    plain = logits_of(model, [ids], tmp_path)["logits_0"]
    files = ["--ids", str(tmp_path / "ids.json"), "--out", str(tmp_path / "out.npz")]
    assert run(["logits", str(model), *files, "--device", "cpu", "--kv-cache-type", "q8"]) == 0
    with np.load(tmp_path / "out.npz") as arrays:
        off = np.abs(arrays["logits_0"] - plain) / plain.std()
    assert 0 < off.max() < 0.1


@pytest.mark.parametrize(
    ("ids", "problem"),
    [
        ({}, "list of non-empty lists"),
        ([[]], "list of non-empty lists"),
        ([[1], "x"], "list of non-empty lists"),
        ([[1], [2, 593]], "list 1 holds an id outside the vocabulary of 593"),
        ([[-1]], "outside the vocabulary"),
        ([[1.5]], "no whole number"),
        ([[True]], "no whole number"),
        ([[1] * 32769], "32769 ids; the context holds 32768"),
    ],
)
def test_wrong_ids_are_refused(
    model: Path, tmp_path: Path, ids: object, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert write_logits(model, ids, tmp_path) == 2
    assert problem in one_error(capsys, "INVALID_REQUEST")


@pytest.mark.parametrize("out", [".", "absent/out.npz"])
def test_a_place_for_the_logits_that_is_none_is_told_before_they_are_computed(
    model: Path, tmp_path: Path, out: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logits, "load_model", None)
    (tmp_path / "ids.json").write_text("[[1]]")
    files = ["--ids", str(tmp_path / "ids.json"), "--out", str(tmp_path / out)]
    assert run(["logits", str(model), *files, "--device", "cpu"]) == 2
    assert "cannot be written" in one_error(capsys, "INVALID_REQUEST")


def test_files_and_devices_that_are_not_there_are_named(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    absent = tmp_path / "absent.json"
    assert run(["logits", str(model), "--ids", str(absent), "--out", "x", "--device", "cpu"]) == 2
    assert "absent.json: cannot be read (No such file" in one_error(capsys, "INVALID_REQUEST")
    assert write_logits(model, [[1]], tmp_path, device="cuda:0") == 1
    assert "--device cpu" in one_error(capsys, "MODEL_LOAD_FAILED")
