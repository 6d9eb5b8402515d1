"""worker.model.families.gemma: what the family has of its own."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from kernels.devices.open import open_device
from tests.models.files import SMALL
from worker.commands.logits import compute_logits
from worker.model.gguf import open_gguf
from worker.model.registry import Model, assemble_model, read_model_config
from worker.model.weights import Weights

PROMPT = list(range(40))


def load(name: str, **changes: object) -> Model:
    """A small model, some numbers of its configuration changed."""
    gguf, device = open_gguf(SMALL[name]), open_device("cpu")
    config = msgspec.structs.replace(read_model_config(gguf), **changes)  # type: ignore[arg-type]
    return assemble_model(config, Weights(gguf, device), device)


@pytest.mark.parametrize("cap", ["attention_softcap", "logit_softcap"])
def test_gemma2_has_soft_caps_on_scores_and_on_logits(cap: str) -> None:
    capped, free = (compute_logits(model, PROMPT) for model in (load("gemma2-q8_0"), load("gemma2-q8_0", **{cap: 0.0})))
    assert np.abs(capped).max() < 8
    assert np.abs(capped - free).max() > 0.05


def test_layers_with_a_window_have_a_rotation_of_their_own() -> None:
    config = read_model_config(open_gguf(SMALL["gemma3-q4_0"]))
    assert [layer.window for layer in config.layers] == [16] * 5 + [0]
    assert (config.rope.base, config.rope.factor) == (1e6, 8.0)
    assert (config.sliding_rope.base, config.sliding_rope.scaling) == (10_000.0, "none")
    same = compute_logits(load("gemma3-q4_0", sliding_rope=config.rope), PROMPT)
    assert np.abs(same - compute_logits(load("gemma3-q4_0"), PROMPT)).max() > 0.05
