"""Engines that may draw other ids have other fingerprints."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from kernels.cache_format import FLOAT16
from kernels.devices.open import open_device
from tests.worker.tiny_model import write_tiny_model
from worker.fingerprint import fingerprint
from worker.model.gguf import open_gguf


def _gpu(arch: str) -> Any:
    """What a fingerprint asks a GPU."""
    return SimpleNamespace(name="cuda:0", cache_format=FLOAT16, gpu=SimpleNamespace(arch=arch))


def test_a_fingerprint_names_file_cache_device_and_numerics(tmp_path: Path) -> None:
    gguf = open_gguf(write_tiny_model(tmp_path / "tiny.gguf"))
    file, cache, device, version = fingerprint(gguf, open_device("cpu")).split("-")
    assert len(file) == 16 and int(file, 16) >= 0
    assert (cache, device, version) == ("float32", "cpu", "6")
    assert fingerprint(gguf, _gpu("sm_90a")) == f"{file}-float16-sm_90a-6"


def test_keys_and_values_of_another_type_are_another_fingerprint(tmp_path: Path) -> None:
    gguf = open_gguf(write_tiny_model(tmp_path / "tiny.gguf"))
    plain, quantised = (fingerprint(gguf, open_device("cpu", cache_type=name)) for name in ("f16", "q8"))
    assert quantised == plain.replace("-float32-", "-q8-") != plain


def test_the_same_file_elsewhere_has_the_same_and_another_model_has_not(demo_model: Path, tmp_path: Path) -> None:
    device = open_device("cpu")
    tiny = fingerprint(open_gguf(write_tiny_model(tmp_path / "a.gguf")), device)
    assert fingerprint(open_gguf(write_tiny_model(tmp_path / "b.gguf")), device) == tiny
    assert fingerprint(open_gguf(demo_model), device) != tiny
