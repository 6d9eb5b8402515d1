"""Llama and its kin: which tensors each architecture has, and longrope."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from kernels.devices.open import open_device
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


def load_changed(tmp_path: Path, name: str, *, add: dict[str, int] | None = None, without: str = "") -> Model:
    """A small model with vectors of these lengths added, or a tensor left out."""
    spec = SPECS[name][1]()
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


@pytest.mark.parametrize("name", ["llama3-bf16", "phi3-q5_k_m", "qwen2-q4_k_m", "qwen3-q4_1"])
def test_without_longrope_a_sequence_is_never_computed_anew(name: str) -> None:
    assert load(SMALL[name]).recompute_at is None


def test_only_llama_rotates_neighbouring_elements() -> None:
    pairings = {name: architecture.pairing for name, architecture in ARCHITECTURES.items()}
    assert pairings == {"llama": "normal", "phi3": "neox", "qwen2": "neox", "qwen3": "neox"}


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("qwen2-q4_k_m", "blk.1.attn_v.bias"),
        ("qwen3-q4_1", "blk.1.attn_k_norm.weight"),
        ("phi3-q5_k_m", "blk.1.attn_qkv.weight"),
        ("phi4-mini-f16", "rope_factors_short.weight"),
        ("llama3-bf16", "blk.0.ffn_gate.weight"),
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
