"""worker.model.forward.step_activations: what a step needs, and no more, the same at the same addresses every time."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from kernels.devices.dry_run import DryRunDevice
from kernels.dry_step import dry_step
from tests.worker.model.tiny import write_tiny
from worker.model.config import ModelConfig
from worker.model.forward.step_activations import StepActivations
from worker.model.gguf import open_gguf
from worker.model.registry import read_model_config

STEP = dry_step(num_tokens=7, num_sequences=3, num_logits=2, max_blocks=4)


def config_of(family: str, folder: Path) -> ModelConfig:
    return read_model_config(open_gguf(write_tiny(family, folder / "tiny.gguf")))


def test_there_is_a_row_for_every_token_and_logits_for_those_that_want_them(tmp_path: Path) -> None:
    config, device = config_of("qwen2", tmp_path), DryRunDevice("cuda:0")
    acts = StepActivations.allocate(config, device, STEP)
    shapes = {name: getattr(acts, name).shape for name in acts.__struct_fields__ if name != "own"}
    assert shapes == {
        "residual": (7, 128),
        "qkv": (7, (2 + 2 * 1) * 64),
        "attended": (7, 2 * 64),
        "activated": (7, 256),
        "logit_rows": (2,),
        "logits": (2, 593),
    }
    assert acts.residual.dtype == acts.logits.dtype == np.float32
    assert acts.qkv.dtype == acts.attended.dtype == acts.activated.dtype == np.float16


def test_a_family_may_have_arrays_of_its_own(tmp_path: Path) -> None:
    config, device = config_of("qwen2", tmp_path), DryRunDevice("cuda:0")
    assert StepActivations.allocate(config, device, STEP).own == ()
    own = StepActivations.allocate(config, device, STEP, (5, 40)).own
    assert [(array.shape, array.dtype) for array in own] == [((7, 5), np.float16), ((7, 40), np.float16)]


def test_a_mixture_of_experts_has_no_activations_of_a_dense_network(tmp_path: Path) -> None:
    config, device = config_of("gpt-oss", tmp_path), DryRunDevice("cuda:0")
    assert StepActivations.allocate(config, device, STEP).activated.size == 0


def test_the_next_step_takes_the_same_memory(tmp_path: Path) -> None:
    config, device = config_of("qwen2", tmp_path), DryRunDevice("cuda:0")
    StepActivations.allocate(config, device, STEP)
    used_bytes = device.memory_bytes()
    StepActivations.allocate(config, device, STEP)
    assert device.memory_bytes() == used_bytes
