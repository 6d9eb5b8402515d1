"""Mixtures of experts: how the chosen ones weigh, and the one that every token goes through."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kernels.devices.dry_run import DryRunDevice
from kernels.devices.open import open_device
from orcd.errors import ModelLoadFailed
from tests.bench.make_model import write_model
from tests.bench.model_specs import ModelSpec
from tests.models.files import SMALL
from tests.models.make_models import blocks
from tests.models.specs import SPECS
from tests.worker.model.stepping import logits_alone
from worker.model.gguf import open_gguf
from worker.model.registry import Model, assemble_model, load_model, read_model_config
from worker.model.weights import Weights

PROMPT = list(range(40, 60))


def load(path: Path) -> Model:
    return load_model(open_gguf(path), open_device("cpu"), lambda _done, _total: None)


def load_spec(tmp_path: Path, spec: ModelSpec, **changes: Any) -> Model:
    """``spec`` with some keys changed or, if None, left out."""
    keys = {key: value for key, value in {**spec.keys, **changes}.items() if value is not None}
    write_model(replace(spec, keys=keys), tmp_path / "model.gguf", make_blocks=blocks)
    return load(tmp_path / "model.gguf")


@pytest.mark.parametrize(("name", "default"), [("qwen2moe-q5_1", False), ("qwen3moe-q4_0", True)])
def test_the_chosen_experts_weigh_as_the_architecture_has_it_unless_the_file_says_otherwise(
    name: str, default: bool, tmp_path: Path
) -> None:
    spec = SPECS[name][1]()
    unsaid, said, other = (
        logits_alone(load_spec(tmp_path, spec, expert_weights_norm=norm), PROMPT)
        for norm in (None, default, not default)
    )
    np.testing.assert_array_equal(unsaid, said)
    assert np.abs(unsaid - other).max() > 0.1


def test_without_keys_of_their_own_widths_of_experts_follow_from_that_of_the_feed_forward(tmp_path: Path) -> None:
    spec = SPECS["qwen2moe-q5_1"][1]()
    lengths = {"expert_feed_forward_length": None, "expert_shared_feed_forward_length": None}
    tensors = [
        replace(tensor, shape=tuple(64 if size == 96 else size for size in tensor.shape)) for tensor in spec.tensors
    ]
    config = load_spec(tmp_path, replace(spec, tensors=tensors), feed_forward_length=64, **lengths).config
    assert (config.num_experts_used, config.intermediate, config.shared_intermediate) == (2, 32, 64)


def test_the_vector_that_gates_a_shared_expert_may_be_a_matrix_of_one_row(tmp_path: Path) -> None:
    spec = SPECS["qwen2moe-q5_1"][1]()
    tensors = [
        replace(tensor, shape=(1, *tensor.shape)) if "gate_inp_shexp" in tensor.name else tensor
        for tensor in spec.tensors
    ]
    as_vector = logits_alone(load_spec(tmp_path, spec), PROMPT)
    as_row = load_spec(tmp_path, replace(spec, tensors=tensors))
    assert open_gguf(tmp_path / "model.gguf").tensors["blk.0.ffn_gate_inp_shexp.weight"].shape == (1, 32)
    np.testing.assert_array_equal(as_vector, logits_alone(as_row, PROMPT))


def test_a_shared_expert_is_missed_where_the_architecture_has_one_and_refused_elsewhere(tmp_path: Path) -> None:
    spec = SPECS["qwen2moe-q5_1"][1]()
    shared = [tensor for tensor in spec.tensors if "shexp" in tensor.name]
    with pytest.raises(ModelLoadFailed, match=r"tensor 'blk.0.ffn_gate_shexp.weight' is missing"):
        load_spec(tmp_path, replace(spec, tensors=[tensor for tensor in spec.tensors if tensor not in shared]))
    other = SPECS["qwen3moe-q4_0"][1]()
    with pytest.raises(ModelLoadFailed, match=r"tensor 'blk.0.ffn_down_shexp.weight' is not known"):
        load_spec(tmp_path, replace(other, tensors=[*other.tensors, *shared]))


def test_a_file_from_when_each_expert_had_tensors_of_its_own_is_refused_as_that(tmp_path: Path) -> None:
    spec = SPECS["mixtral-q5_0"][1]()
    apart = [
        replace(tensor, name=tensor.name.replace("_exps", f".{expert}"), shape=tensor.shape[1:])
        for tensor in spec.tensors
        for expert in range(4)
        if "_exps" in tensor.name
    ]
    kept = [tensor for tensor in spec.tensors if "_exps" not in tensor.name]
    with pytest.raises(ModelLoadFailed, match=r"tensor 'blk.0.ffn_gate_exps.weight' is missing: .* before April 2024"):
        load_spec(tmp_path, replace(spec, tensors=[*kept, *apart]))


def test_what_a_gpu_has_no_kernel_for_is_refused_there_by_the_name_of_its_tensor() -> None:
    gguf, device = open_gguf(SMALL["qwen2moe-q5_1"]), DryRunDevice("cuda:0")
    with pytest.raises(ModelLoadFailed, match=r"qwen2moe-q5_1.gguf: tensor 'blk.0.ffn_\w+.weight' .* --device cpu"):
        assemble_model(read_model_config(gguf), Weights(gguf, device), device)
