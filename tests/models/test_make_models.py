"""tests.models.make_models: the files in the repository are those that it writes, and leave out nothing."""

from __future__ import annotations

import json
from pathlib import Path

import gguf

from kernels.weights.formats import FORMATS
from tests.models.files import SMALL
from tests.models.make_models import main
from tests.models.specs import SPECS
from worker.model.registry import FAMILIES


def test_it_writes_the_bytes_of_the_files_in_the_repository(tmp_path: Path) -> None:
    assert main([str(tmp_path)]) == 0
    assert {path.stem: path.read_bytes() for path in tmp_path.iterdir()} == {
        name: path.read_bytes() for name, path in SMALL.items()
    }


def test_every_architecture_and_every_tensor_type_is_in_some_file() -> None:
    readers = [gguf.GGUFReader(path) for path in SMALL.values()]
    assert {reader.fields["general.architecture"].contents() for reader in readers} == set(FAMILIES)
    assert {tensor.tensor_type.name for reader in readers for tensor in reader.tensors} == set(FORMATS)


def test_every_file_has_its_references() -> None:
    tokens = json.loads((Path(__file__).parent / "tokens.json").read_text())
    assert SMALL.keys() == SPECS.keys() == tokens.keys()
    assert all(path.with_suffix(".npz").exists() for path in SMALL.values())
