"""Llama and its kin: which tensors each architecture has, and longrope."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import kernels.reference.decode_layers
from kernels.devices.open import open_device
from kernels.weights.parameters import LayersSupport
from orcd.errors import ModelLoadFailed
from tests.bench.make_model import write_model
from tests.bench.model_specs import TensorSpec
from tests.models.files import KIT, SMALL
from tests.models.make_models import blocks
from tests.models.specs import SPECS
from tests.worker.model.stepping import Stepper, logits_alone
from worker.model.families.llama import ARCHITECTURES
from worker.model.gguf import open_gguf
from worker.model.registry import Model, load_model


def load(path: Path) -> Model:
    return load_model(open_gguf(path), open_device("cpu"), lambda _done, _total: None)


def load_changed(
    tmp_path: Path,
    name: str,
    *,
    add: dict[str, int] | None = None,
    without: str = "",
    keys: dict[str, float | None] | None = None,
) -> Model:
    """A small model with vectors of these lengths added, a tensor left out, or other keys (None: left out)."""
    spec = SPECS[name][1]()
    changed = {key: value for key, value in {**spec.keys, **(keys or {})}.items() if value is not None}
    spec = replace(spec, keys=changed)
    kept = [tensor for tensor in spec.tensors if tensor.name != without]
    added = [TensorSpec(tensor, "F32", (length,)) for tensor, length in (add or {}).items()]
    write_model(replace(spec, tensors=kept + added), tmp_path / "model.gguf", make_blocks=blocks)
    return load(tmp_path / "model.gguf")


@pytest.mark.parametrize(("path", "limit"), [(KIT.get("phi3-longrope-f16"), 256), (SMALL["phi4-mini-f16"], 32)])
def test_a_sequence_beyond_the_original_context_uses_the_long_factors_from_its_first_chunk(
    path: Path | None, limit: int
) -> None:
    if path is None:
        pytest.skip("needs the conformance kit in ../shared")
    model = load(path)
    assert model.recompute_at == limit
    prompt = np.random.default_rng(0).integers(0, model.config.vocab_size, limit + 1).tolist()
    within, beyond = logits_alone(model, prompt[:limit]), logits_alone(model, prompt)
    assert np.abs(within - beyond[:limit]).max() > 0.1
    stepper = Stepper(model, [prompt])
    first = limit * 2 // 5
    chunks = [stepper.step({0: num_tokens})[0] for num_tokens in (first, limit - first, 1)]
    np.testing.assert_array_equal(np.concatenate(chunks), beyond)


@pytest.mark.parametrize("name", ["llama3-bf16", "phi3-q5_k_m", "qwen2-q4_k_m", "qwen3-q4_1", "mistral3-q8_0"])
def test_without_longrope_a_sequence_is_never_computed_anew(name: str) -> None:
    assert load(SMALL[name]).recompute_at is None


def test_llama_and_those_converted_as_it_rotate_neighbouring_elements() -> None:
    neighbours = {name for name, architecture in ARCHITECTURES.items() if architecture.pairing == "normal"}
    assert neighbours == {"llama", "mistral3", "granite", "smollm3", "glm4"}
    assert ARCHITECTURES.keys() - neighbours == {"phi3", "qwen2", "qwen2moe", "qwen3", "qwen3moe"}


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("granite-q4_1", "embedding_scale", 1.0),
        ("granite-q4_1", "residual_scale", 0.0),
        ("granite-q4_1", "attention.scale", 0.25),
        ("granite-q4_1", "logit_scale", 1.0),
        ("mistral3-q8_0", "attention.temperature_scale", 0.0),
    ],
)
def test_a_scale_of_the_file_counts_and_without_it_nothing_is_scaled(
    name: str, key: str, value: float, tmp_path: Path
) -> None:
    """``value``: with which the file means the same as without the key."""
    prompt = list(range(40, 90))
    scaled, plain, unscaled = (
        logits_alone(load_changed(tmp_path, name, keys={key: changed} if number else {}), prompt)
        for number, changed in enumerate((None, None, value))
    )
    assert np.abs(scaled - plain).max() > 0.01
    np.testing.assert_array_equal(plain, unscaled)


def test_granite_4_without_mamba_layers_is_a_granite_whatever_keys_of_the_others_it_has(tmp_path: Path) -> None:
    sizes = {"conv_kernel": 4, "state_size": 128, "group_count": 1, "inner_size": 4096, "time_step_rank": 64}
    keys: dict[str, float | None] = {"expert_shared_feed_forward_length": 96, "rope.scaling.finetuned": True}
    keys |= {f"ssm.{name}": size for name, size in sizes.items()}
    plain = logits_alone(load_changed(tmp_path, "granite-q4_1"), [1, 2, 3])
    np.testing.assert_array_equal(plain, logits_alone(load_changed(tmp_path, "granite-q4_1", keys=keys), [1, 2, 3]))
    with pytest.raises(ModelLoadFailed, match=r"llama\.ssm\.state_size \(128\) is not known for this architecture"):
        load_changed(tmp_path, "llama2-q4_0", keys={"ssm.state_size": 128})


def test_of_a_granite_that_is_not_rotated_one_layer_does_not_tell_the_order_of_earlier_tokens(tmp_path: Path) -> None:
    spec = SPECS["granite-q4_1"][1]()
    tensors = [tensor for tensor in spec.tensors if not tensor.name.startswith("blk.1.")]
    last = {}
    for rotates in (True, False):
        keys = spec.keys | {"block_count": 1, "rope.scaling.finetuned": rotates}
        write_model(replace(spec, keys=keys, tensors=tensors), tmp_path / "model.gguf", make_blocks=blocks)
        model = load(tmp_path / "model.gguf")
        last[rotates] = [logits_alone(model, prompt)[-1] for prompt in ([40, 50, 60, 70], [60, 40, 50, 70])]
    np.testing.assert_allclose(*last[False], atol=1e-4)
    assert np.abs(last[True][0] - last[True][1]).max() > 0.01


@pytest.mark.parametrize(("num_layers", "is_same"), [(3, True), (4, False)])
def test_until_its_fourth_layer_which_is_not_rotated_smollm3_is_a_llama(
    num_layers: int, is_same: bool, tmp_path: Path
) -> None:
    spec = SPECS["smollm3-q5_1"][1]()
    spec = replace(
        spec,
        keys=spec.keys | {"block_count": num_layers},
        tensors=[tensor for tensor in spec.tensors if num_layers == 4 or not tensor.name.startswith("blk.3.")],
    )
    logits = []
    for architecture in ("smollm3", "llama"):
        write_model(replace(spec, architecture=architecture), tmp_path / f"{architecture}.gguf", make_blocks=blocks)
        logits.append(logits_alone(load(tmp_path / f"{architecture}.gguf"), list(range(40, 70))))
    assert np.array_equal(*logits) == is_same


def test_files_of_llama_may_hold_experts_and_qwen3moe_must(tmp_path: Path) -> None:
    assert load(SMALL["mixtral-q5_0"]).config.num_experts == 4
    assert load(SMALL["mixtral-q5_0"]).config.intermediate == 32  # which feed_forward_length says
    assert load(SMALL["llama2-q4_0"]).config.num_experts == 0
    with pytest.raises(ModelLoadFailed, match=r"qwen3moe.expert_count is 0: models of .* qwen3moe are mixtures"):
        load_changed(tmp_path, "qwen3moe-q4_0", keys={"expert_count": 0})


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("qwen2-q4_k_m", "blk.1.attn_v.bias"),
        ("qwen3-q4_1", "blk.1.attn_k_norm.weight"),
        ("phi3-q5_k_m", "blk.1.attn_qkv.weight"),
        ("phi4-mini-f16", "rope_factors_short.weight"),
        ("llama3-bf16", "blk.0.ffn_gate.weight"),
        ("glm4-f16", "blk.1.post_ffw_norm.weight"),
        ("mixtral-q5_0", "blk.0.ffn_gate_inp.weight"),
        ("qwen3moe-q4_0", "blk.1.ffn_down_exps.weight"),
    ],
)
def test_a_tensor_that_the_architecture_needs_is_missed(name: str, tensor: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match=f"tensor '{tensor}' is missing"):
        load_changed(tmp_path, name, without=tensor)


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("llama3-bf16", "blk.0.attn_q_norm.weight"),
        ("llama3-bf16", "rope_factors_long.weight"),
        ("phi3-q5_k_m", "blk.0.attn_output.bias"),
        ("phi3-q5_k_m", "rope_freqs.weight"),
        ("phi3-q5_k_m", "rope_factors_short.weight"),
        ("qwen2-q4_k_m", "blk.0.attn_q_norm.weight"),
        ("granite-q4_1", "blk.0.post_attention_norm.weight"),
        ("mixtral-q5_0", "blk.0.ffn_gate_inp.bias"),
    ],
)
def test_a_tensor_of_another_architecture_is_refused(name: str, tensor: str, tmp_path: Path) -> None:
    with pytest.raises(ModelLoadFailed, match=f"tensor '{tensor}' is not known for this architecture"):
        load_changed(tmp_path, name, add={tensor: 32})


@pytest.mark.parametrize("name", ["llama2-q4_0", "qwen3-q4_1"])
def test_biases_that_a_file_holds_are_added(name: str, tmp_path: Path) -> None:
    plain = logits_alone(load_changed(tmp_path, name), [1, 2, 3])
    biased = load_changed(tmp_path, name, add={"blk.0.attn_output.bias": 32, "blk.1.ffn_down.bias": 32})
    assert np.abs(plain - logits_alone(biased, [1, 2, 3])).max() > 1e-3


@pytest.mark.parametrize("name", ["qwen2-q4_k_m", "llama3-bf16", "phi3-q5_k_m", "granite-q4_1"])
def test_layers_of_one_token_are_the_same_in_one_op(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one_by_one = load(SMALL[name])
    support = LayersSupport(None, dict.fromkeys((1, 2, 4, 8), 2048))
    monkeypatch.setattr(kernels.reference.decode_layers, "decode_layers_support", lambda _: support)
    in_one = load(SMALL[name])
    assert not one_by_one.one_kernel_contexts
    can = not name.startswith("granite")  # whose residuals are scaled
    assert list(in_one.one_kernel_contexts) == ([1, 2, 4, 8] if can else [])
    prompts = np.random.default_rng(1).integers(0, in_one.config.vocab_size, (8, 13)).tolist()
    steppers = [Stepper(model, prompts) for model in (one_by_one, in_one)]
    chunks = (
        {0: 5},
        {0: 1},
        {0: 1, 1: 3},
        {0: 1, 1: 1},
        {0: 2},
        {0: 1, 1: 1, 2: 1},
        dict.fromkeys(range(4), 1),
        {3: 1},
        dict.fromkeys(range(8), 1),
    )
    for step in chunks:
        expected, actual = (stepper.step(step) for stepper in steppers)
        for sequence in step:
            np.testing.assert_array_equal(actual[sequence], expected[sequence])
