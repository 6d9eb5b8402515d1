"""LFM2: what a convolution sees, and what is said of files of another form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from kernels.devices.open import open_device
from tests.bench.make_model import write_model
from tests.models.files import SMALL
from tests.models.make_models import blocks
from tests.models.specs import SPECS
from tests.worker.model.stepping import logits_alone
from worker.model.gguf import open_gguf
from worker.model.registry import Model, load_model

NAME = "lfm2-q5_1"


def load(path: Path) -> Model:
    return load_model(open_gguf(path), open_device("cpu"), lambda _done, _total: None)


def test_a_convolution_sees_the_token_and_two_before_it(tmp_path: Path) -> None:
    """Without attention, which is made to find nothing, two convolutions see four tokens before each."""
    spec = SPECS[NAME][1]()
    blind = [
        replace(tensor, deviation=0.0) if tensor.name == "blk.1.attn_output.weight" else tensor
        for tensor in spec.tensors
    ]
    write_model(replace(spec, tensors=blind), tmp_path / "model.gguf", make_blocks=blocks)
    model, prompt = load(tmp_path / "model.gguf"), list(range(40, 60))
    changed = [*prompt[:8], 99, *prompt[9:]]
    differs = np.abs(logits_alone(model, prompt) - logits_alone(model, changed)).max(axis=1) > 0
    assert np.flatnonzero(differs).tolist() == [8, 9, 10, 11, 12]


def test_layers_without_heads_of_keys_are_convolutions() -> None:
    config = load(SMALL[NAME]).config
    assert [layer.recurrent for layer in config.layers] == [True, False, True]
    assert config.recurrence is not None
    assert (config.recurrence.num_taps, config.recurrence.channels, config.recurrence.state_size) == (3, 32, 64)
