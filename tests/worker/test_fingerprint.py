"""Engines that may draw other ids have other fingerprints."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kernels.cache_format import FLOAT16
from kernels.devices.open import open_device
from orcd.errors import ModelLoadFailed
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


def test_files_that_differ_in_weights_alone_are_told_apart(tmp_path: Path) -> None:
    """A tuned model under the name of the one that it was made of."""
    device, path = open_device("cpu"), write_tiny_model(tmp_path / "a.gguf")
    gguf = open_gguf(path)
    own, offset = fingerprint(gguf, device), bytes(gguf.tensors["output_norm.weight"].content)
    changed = path.read_bytes().replace(offset, bytes([offset[0] ^ 1]) + offset[1:])
    (tmp_path / "b.gguf").write_bytes(changed)
    assert fingerprint(open_gguf(tmp_path / "b.gguf"), device) != own


def test_what_a_worker_has_been_given_in_place_of_a_part_of_the_file_is_of_it(tmp_path: Path) -> None:
    device, gguf = open_device("cpu"), open_gguf(write_tiny_model(tmp_path / "a.gguf"))
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("1")
    second.write_text("2")
    given = [("", ""), (str(first), ""), ("", str(first)), (str(second), ""), (str(first), str(second))]
    assert len({fingerprint(gguf, device, files) for files in given}) == len(given)
    with pytest.raises(ModelLoadFailed, match="gone: No such file"):
        fingerprint(gguf, device, (str(tmp_path / "gone"), ""))
