"""gpt-oss: experts, and a window on every other layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.devices.open import open_device
from orcd.errors import ModelLoadFailed
from tests.bench.make_model import write_model
from tests.models.files import SMALL
from tests.models.make_models import blocks
from tests.models.specs import SPECS
from tests.worker.model.stepping import logits_alone
from worker.model.gguf import open_gguf
from worker.model.registry import Model, load_model

[NAME] = [name for name in SPECS if name.startswith("gpt-oss")]


def load(path: Path) -> Model:
    return load_model(open_gguf(path), open_device("cpu"), lambda _done, _total: None)


def load_changed(path: Path, keys: dict[str, Any], num_layers: int = 2) -> Model:
    """The small model with other keys and only its first layers."""
    spec = SPECS[NAME][1]()
    dropped = tuple(f"blk.{layer}." for layer in range(num_layers, 2))
    tensors = [tensor for tensor in spec.tensors if not tensor.name.startswith(dropped)]
    keys = spec.keys | {"block_count": num_layers} | keys
    write_model(replace(spec, keys=keys, tensors=tensors), path, make_blocks=blocks)
    return load(path)


def sees_beyond_the_window(model: Model) -> bool:
    """Whether the last token's logits depend on one that lies further back than the window."""
    length = model.config.sliding_window + 8
    prompt = np.random.default_rng(0).integers(0, model.config.vocab_size, length).tolist()
    other = [prompt[0], (prompt[1] + 1) % model.config.vocab_size, *prompt[2:]]
    return bool((logits_alone(model, prompt)[-1] != logits_alone(model, other)[-1]).any())


def test_every_other_layer_sees_beyond_the_window(tmp_path: Path) -> None:
    assert sees_beyond_the_window(load(SMALL[NAME]))
    assert not sees_beyond_the_window(load_changed(tmp_path / "one.gguf", {}, num_layers=1))


def test_without_experts_there_is_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match=r"gpt-oss\.expert_count is 0: models of .* are mixtures of experts"):
        load_changed(tmp_path / "model.gguf", {"expert_count": 0})
