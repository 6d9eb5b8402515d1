"""worker.model.other_architectures: a file that no family runs is told by name, and what is missing, in one line."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest
from msgspec.structs import replace

from orcd.errors import ModelLoadFailed
from tests.worker.model.tiny import write_tiny
from worker.commands.inspect import format_report, inspect_gguf
from worker.model.gguf import open_gguf
from worker.model.other_architectures import NEEDS
from worker.model.registry import FAMILIES, read_model_config

HANDLED_BEFORE = {"clip"}  # vision projectors, which are no models


def test_every_architecture_of_the_gguf_library_runs_or_is_told_of() -> None:
    assert not NEEDS.keys() & FAMILIES.keys()
    assert {*gguf.MODEL_ARCH_NAMES.values()} - HANDLED_BEFORE <= NEEDS.keys() | FAMILIES.keys()


@pytest.mark.parametrize(
    ("name", "need"),
    [
        ("deepseek2", "which needs attention on compressed keys and values; orcd runs gemma2, "),
        ("llama4", "which needs experts that are chosen or placed by other rules; "),
        ("kimi-linear", "which needs linear attention of another form; "),
        ("mamba", "which needs Mamba layers, whose state is no KV cache; "),
        ("bert", "which makes embeddings, where orcd writes text; "),
    ],
)
def test_it_is_an_error_in_one_line_and_inspect_shows_it(name: str, need: str, tmp_path: Path) -> None:
    file = open_gguf(write_tiny("qwen2", tmp_path / "model.gguf"))
    file = replace(file, metadata={**file.metadata, "general.architecture": name})
    with pytest.raises(
        ModelLoadFailed, match=rf"model.gguf: the architecture \(general.architecture\) is '{name}', {need}"
    ):
        read_model_config(file)
    report = inspect_gguf(file)
    assert report.architecture == name and not report.supported and len(report.problems) == 1
    assert f"    the architecture (general.architecture) is '{name}', {need}" in format_report(report)
