"""Muse Glimmer: which layers have a window and a rotation, and what is said of them in files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kernels.devices.open import open_device
from tests.bench.make_model import write_model
from tests.models.files import SMALL
from tests.models.make_models import blocks
from tests.models.specs import SPECS
from tests.worker.model.stepping import logits_alone
from worker.model.gguf import open_gguf
from worker.model.registry import Model, load_model

NAME = "muse-glimmer-q4_0"
PROMPT = list(range(40, 80))


def load(path: Path) -> Model:
    return load_model(open_gguf(path), open_device("cpu"), lambda _done, _total: None)


def load_with(tmp_path: Path, pattern: list[bool] | int | None) -> Model:
    spec = SPECS[NAME][1]()
    keys = spec.keys | {"attention.sliding_window_pattern": pattern}
    keys = {key: value for key, value in keys.items() if value is not None}
    write_model(replace(spec, keys=keys), tmp_path / "model.gguf", seed=SPECS[NAME][0], make_blocks=blocks)
    return load(tmp_path / "model.gguf")


@pytest.mark.parametrize("pattern", [4, None])
def test_every_fourth_layer_has_no_window_if_the_file_gives_a_number_or_nothing(
    tmp_path: Path, pattern: int | None
) -> None:
    np.testing.assert_array_equal(
        logits_alone(load_with(tmp_path, pattern), PROMPT), logits_alone(load(SMALL[NAME]), PROMPT)
    )


@pytest.mark.parametrize("window", [0, 64])
def test_a_layer_is_rotated_if_it_has_a_window(tmp_path: Path, window: int) -> None:
    """Of one that is not, a token sees what is before it, but not in which order."""
    spec = SPECS[NAME][1]()
    tensors = [tensor for tensor in spec.tensors if not tensor.name.startswith(("blk.1.", "blk.2.", "blk.3."))]
    keys = {"block_count": 1, "attention.sliding_window": window, "attention.sliding_window_pattern": [True]}
    write_model(replace(spec, tensors=tensors, keys=spec.keys | keys), tmp_path / "model.gguf", make_blocks=blocks)
    model = load(tmp_path / "model.gguf")
    forwards, backwards = (logits_alone(model, prompt)[-1] for prompt in (PROMPT, [*PROMPT[-2::-1], PROMPT[-1]]))
    assert (np.abs(forwards - backwards).max() > 0.1) == bool(window)
