"""GPT-2: its own metadata key, and positions that it has learned."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kernels.devices.open import open_device
from orcd.errors import ModelLoadFailed
from tests.bench.make_model import write_model
from tests.models.files import SMALL
from tests.models.make_models import blocks
from tests.models.specs import SPECS, keys
from tests.worker.model.stepping import logits_alone
from worker.model.gguf import open_gguf
from worker.model.registry import load_model, read_model_config


def test_the_epsilon_of_a_layer_norm_has_a_key_of_its_own(tmp_path: Path) -> None:
    assert read_model_config(open_gguf(SMALL["gpt2-q8_0"])).norm_epsilon == pytest.approx(1e-5)
    spec = SPECS["gpt2-q8_0"][1]()
    write_model(replace(spec, keys=keys(128, 2, 2)), tmp_path / "model.gguf", make_blocks=blocks)
    with pytest.raises(ModelLoadFailed, match=r"gpt2\.attention\.layer_norm_epsilon is missing"):
        read_model_config(open_gguf(tmp_path / "model.gguf"))


def test_the_same_token_says_something_else_at_another_position() -> None:
    model = load_model(open_gguf(SMALL["gpt2-q8_0"]), open_device("cpu"), lambda _done, _total: None)
    assert model.recompute_at is None
    first, second = logits_alone(model, [5, 5])
    assert np.abs(first - second).max() > 0.1
