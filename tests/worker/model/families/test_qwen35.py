"""Qwen3.5 and Qwen3-Next: the forms that files have, what is left out, and which devices run them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kernels.devices.dry_run import DryRunDevice
from kernels.devices.open import open_device
from orcd.errors import ModelLoadFailed
from tests.bench.make_model import write_model
from tests.bench.model_specs import ModelSpec, TensorSpec
from tests.models.hybrid_specs import STATE_SIZE
from tests.models.make_models import blocks
from tests.models.specs import SPECS
from tests.worker.model.stepping import logits_alone
from worker.model.gguf import open_gguf
from worker.model.registry import Model, assemble_model, load_model, read_model_config
from worker.model.weights import Weights

PROMPT = list(range(40, 70))
Blocks = Callable[[TensorSpec, np.random.Generator], np.ndarray]


def load(path: Path) -> Model:
    return load_model(open_gguf(path), open_device("cpu"), lambda _done, _total: None)


def logits_of(tmp_path: Path, spec: ModelSpec, make_blocks: Blocks = blocks) -> np.ndarray:
    write_model(spec, tmp_path / "model.gguf", make_blocks=make_blocks)
    return logits_alone(load(tmp_path / "model.gguf"), PROMPT)


def named_blocks(tensor: TensorSpec, _rng: np.random.Generator) -> np.ndarray:
    """Contents that depend on the tensor's name, not on those before it in the file."""
    return blocks(tensor, np.random.default_rng(list(tensor.name.encode())))


def test_blocks_that_predict_further_tokens_change_nothing(tmp_path: Path) -> None:
    spec = SPECS["qwen35-q4_k_m"][1]()
    kept = [tensor for tensor in spec.tensors if not tensor.name.startswith("blk.2.")]
    keys = {key: value for key, value in spec.keys.items() if key != "nextn_predict_layers"}
    without = replace(spec, tensors=kept, keys=keys | {"block_count": 2})
    np.testing.assert_array_equal(logits_of(tmp_path, spec, named_blocks), logits_of(tmp_path, without, named_blocks))


def test_the_first_files_of_qwen3_next_have_queries_keys_values_and_gates_in_one_tensor(tmp_path: Path) -> None:
    """Rows are for each key head its query, its key, and values and z of the value heads that it serves."""
    spec = SPECS["qwen3next-q8_0"][1]()
    parts = {
        tensor.name: tensor
        for tensor in spec.tensors
        if tensor.name in ("blk.0.attn_qkv.weight", "blk.0.attn_gate.weight")
    }
    qkv, gate = parts.values()
    fused = replace(qkv, name="blk.0.ssm_in.weight", shape=(qkv.shape[0] + gate.shape[0], qkv.shape[1]))

    def fused_blocks(tensor: TensorSpec, rng: np.random.Generator) -> np.ndarray:
        if tensor is not fused:
            return named_blocks(tensor, rng)
        rows = np.concatenate([named_blocks(part, rng) for part in (qkv, gate)])
        key_heads, group = spec.keys["ssm.group_count"], 2
        queries, keys, values, gates = np.split(rows, np.cumsum([key_heads, key_heads, 2 * group]) * STATE_SIZE)
        each = (part.reshape(key_heads, -1, rows.shape[1]) for part in (queries, keys, values, gates))
        return np.concatenate(list(each), axis=1).reshape(rows.shape)

    tensors = [fused if tensor is qkv else tensor for tensor in spec.tensors if tensor is not gate]
    found = logits_of(tmp_path, replace(spec, tensors=tensors), fused_blocks)
    # The matrices have other shapes, in which a sum's order may be another.
    np.testing.assert_allclose(found, logits_of(tmp_path, spec, named_blocks), atol=1e-3)


def test_heads_that_are_tiled_are_not_those_that_are_grouped(tmp_path: Path) -> None:
    """The same weights mean something else in Qwen3.5 and in Qwen3-Next."""
    spec = SPECS["qwen3next-q8_0"][1]()
    rates = [tensor for tensor in spec.tensors if tensor.name.endswith("ssm_ba.weight")]
    halves = [
        replace(tensor, name=tensor.name.replace("ssm_ba", part), shape=(tensor.shape[0] // 2, tensor.shape[1]))
        for tensor in rates
        for part in ("ssm_beta", "ssm_alpha")
    ]
    tiled = replace(
        spec, architecture="qwen35moe", tensors=[tensor for tensor in spec.tensors if tensor not in rates] + halves
    )
    grouped = logits_of(tmp_path, spec, named_blocks)
    assert np.abs(grouped - logits_of(tmp_path, tiled, named_blocks)).max() > 0.1


def test_states_of_a_size_that_no_gpu_kernel_has_are_refused_by_name(tmp_path: Path) -> None:
    spec = SPECS["qwen35-q4_k_m"][1]()
    write_model(replace(spec, keys=spec.keys | {"ssm.state_size": 24}), tmp_path / "model.gguf", make_blocks=blocks)
    gguf, device = open_gguf(tmp_path / "model.gguf"), DryRunDevice("cuda:0")
    problem = r"qwen35\.ssm\.state_size: states of 24 by 16, and a GPU can do 16, 32, 64, 128; run it with --device cpu"
    with pytest.raises(ModelLoadFailed, match=problem):
        assemble_model(read_model_config(gguf), Weights(gguf, device), device)


def test_a_key_of_its_groups_that_nobody_reads_is_named(tmp_path: Path) -> None:
    spec = SPECS["qwen35-q4_k_m"][1]()
    for key, value in {"ssm.dt_b_c_rms": 1, "attention.output_gate": 0, "rope.mrope_interleaved": 0}.items():
        write_model(replace(spec, keys=spec.keys | {key: value}), tmp_path / "model.gguf", make_blocks=blocks)
        with pytest.raises(ModelLoadFailed, match=rf"qwen35\.{key} \({value}\) is not known for this architecture"):
            load(tmp_path / "model.gguf")


def test_a_tensor_that_is_missing_is_named(tmp_path: Path) -> None:
    spec = SPECS["qwen35-q4_k_m"][1]()
    for name in ("blk.0.ssm_a", "blk.0.ssm_dt.bias", "blk.0.ssm_conv1d.weight", "blk.0.ssm_beta.weight"):
        kept = [tensor for tensor in spec.tensors if tensor.name != name]
        write_model(replace(spec, tensors=kept), tmp_path / "model.gguf", make_blocks=blocks)
        with pytest.raises(ModelLoadFailed, match=f"tensor '{name}' is missing"):
            load(tmp_path / "model.gguf")
