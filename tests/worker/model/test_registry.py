"""worker.model.registry: a sequence's logits do not depend on its neighbours, its blocks or its chunks."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import msgspec
import numpy as np
import pytest

from kernels.devices.dry_run import DryRunDevice
from kernels.devices.open import open_device
from kernels.weights.formats import FORMATS
from orcd.errors import ModelLoadFailed
from tests.bench.make_model import write_model
from tests.bench.model_specs import TensorSpec, phi3
from tests.models.files import KIT, SMALL
from tests.worker.model.stepping import Stepper, logits_alone
from tests.worker.model.tiny import FAMILIES, write_tiny
from worker.model.gguf import open_gguf
from worker.model.registry import ARCHITECTURES, Model, assemble_model, load_model, read_model_config
from worker.model.weights import Weights
from worker.text.encoders.pre_tokenizers import PRE_TOKENIZERS

OF_THE_KIT = ("gpt-oss-mxfp4", "gpt2-q4_0", "llama-q4_k_m", "phi3-longrope-f16", "phi3-swa-q4_k_m", "qwen2-tied-q4_k_m")
MODELS = SMALL | {name: path for name, path in KIT.items() if name in OF_THE_KIT}
LENGTHS = [1, 5, 40, 64, 65, 130]


@cache
def load(path: Path) -> Model:
    return load_model(open_gguf(path), open_device("cpu"), lambda _done, _total: None)


def random_prompts(model: Model, rng: np.random.Generator) -> list[list[int]]:
    return [rng.integers(0, model.config.vocab_size, length).tolist() for length in LENGTHS]


def run_mixed(model: Model, prompts: list[list[int]], block_tokens: int, rng: np.random.Generator) -> list[np.ndarray]:
    """All prompts together in random chunks, decodes and prefills mixed, over scattered blocks."""
    stepper = Stepper(model, prompts, block_tokens=block_tokens, seed=int(rng.integers(1000)))
    left = {number: len(prompt) for number, prompt in enumerate(prompts)}
    logits: list[list[np.ndarray]] = [[] for _ in prompts]
    while left:
        members = [member for member in rng.permutation(list(left)).tolist() if rng.random() < 0.7] or list(left)[:1]
        plan = {member: min(left[member], int(rng.choice([1, 1, 3, 16, 37]))) for member in members}
        for member, part in stepper.step(plan).items():
            logits[member].append(part)
            left[member] -= plan[member]
            if not left[member]:
                del left[member]
    return [np.concatenate(parts) for parts in logits]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("block_tokens", [16, 5])
def test_a_sequence_computes_the_same_bits_alone_batched_and_chunked(name: str, block_tokens: int) -> None:
    model = load(MODELS[name])
    rng = np.random.default_rng(block_tokens)
    prompts = random_prompts(model, rng)
    mixed = run_mixed(model, prompts, block_tokens, rng)
    for prompt, logits in zip(prompts, mixed, strict=True):
        np.testing.assert_array_equal(logits, logits_alone(model, prompt))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_synthetic_model_loads_runs_and_stays_finite(family: str, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    gguf = open_gguf(write_tiny(family, tmp_path / "tiny.gguf"))
    model = load_model(gguf, open_device("cpu"), lambda done, total: seen.append((done, total)))
    matrices = [tensor for name, tensor in gguf.tensors.items() if len(tensor.shape) > 1 and name.endswith(".weight")]
    total_bytes = sum(tensor.num_bytes for tensor in matrices)  # norms and biases are read before
    assert seen == sorted(seen) and seen[-1] == (total_bytes, total_bytes)
    rng = np.random.default_rng(0)
    prompts = random_prompts(model, rng)
    for prompt, logits in zip(prompts, run_mixed(model, prompts, 16, rng), strict=True):
        assert np.isfinite(logits).all() and logits.std() > 0
        np.testing.assert_array_equal(logits, logits_alone(model, prompt))
    cache_ = model.allocate_cache(3, 16)
    assert sum(array.nbytes for layer in cache_.layers for array in layer.arrays()) == 3 * model.bytes_per_block(16)


def test_weights_that_overflow_give_non_finite_logits_without_a_warning(tmp_path: Path) -> None:
    path = write_tiny("qwen2", tmp_path / "tiny.gguf")
    tensor = open_gguf(path).tensors["blk.0.attn_norm.weight"]
    data = bytearray(path.read_bytes())
    data[tensor.offset : tensor.offset + tensor.num_bytes] = np.full(128, 3e38, np.float32).tobytes()
    path.write_bytes(data)
    assert not np.isfinite(logits_alone(load(path), [1, 2, 3])).any()


def test_an_unknown_architecture_lists_the_known_ones(tmp_path: Path) -> None:
    spec = FAMILIES["qwen2"]()
    write_model(replace(spec, architecture="quasar"), tmp_path / "model.gguf")
    with pytest.raises(ModelLoadFailed, match=f"'quasar'; orcd runs {', '.join(sorted(ARCHITECTURES))}"):
        read_model_config(open_gguf(tmp_path / "model.gguf"))


def test_a_tensor_that_no_family_knows_is_refused(tmp_path: Path) -> None:
    spec = FAMILIES["qwen2"]()
    extra = TensorSpec("blk.1.attn_q_norm.weight", "F32", (64,))
    write_model(replace(spec, tensors=[*spec.tensors, extra]), tmp_path / "tiny.gguf")
    with pytest.raises(ModelLoadFailed, match=r"tensor 'blk.1.attn_q_norm.weight' is not known"):
        load(tmp_path / "tiny.gguf")


def test_tensors_that_predict_further_tokens_are_left_out_by_name(tmp_path: Path) -> None:
    spec = FAMILIES["qwen2"]()
    plain = logits_alone(load(write_tiny("qwen2", tmp_path / "plain.gguf")), [1, 2, 3])
    extra = [
        *(TensorSpec(f"blk.{layer}.nextn.eh_proj.weight", "Q8_0", (128, 256)) for layer in (1, 2)),
        *(replace(old, name=old.name.replace("blk.1", "blk.2")) for old in spec.tensors if "blk.1" in old.name),
    ]
    keys = {**spec.keys, "block_count": 3, "nextn_predict_layers": 1}
    write_model(replace(spec, keys=keys, tensors=[*spec.tensors, *extra]), tmp_path / "mtp.gguf")
    model = load(tmp_path / "mtp.gguf")
    assert model.config.num_layers == 2
    np.testing.assert_array_equal(logits_alone(model, [1, 2, 3]), plain)
    without_key = replace(spec, tensors=[*spec.tensors, *extra[:3]])
    write_model(without_key, tmp_path / "block.gguf")
    with pytest.raises(ModelLoadFailed, match=r"tensor 'blk.2.attn_\w+.weight' is not known"):
        load(tmp_path / "block.gguf")


def test_a_layer_that_predicts_no_further_tokens_is_not_left_out_whatever_their_number(tmp_path: Path) -> None:
    spec = FAMILIES["qwen2"]()
    write_model(replace(spec, keys={**spec.keys, "nextn_predict_layers": 1}), tmp_path / "model.gguf")
    with pytest.raises(ModelLoadFailed, match=r"tensor 'blk\.1\.\w+\.\w+' is not known for this architecture"):
        load(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("general.architecture", "clip", r"a vision projector \(mmproj\), which goes with a model"),
        ("general.type", "mmproj", r"a vision projector \(mmproj\)"),
        ("general.type", "adapter", r"an adapter \(LoRA\)"),
        ("general.type", "imatrix", "an importance matrix"),
    ],
)
def test_a_file_that_goes_with_a_model_is_told_from_one(tmp_path: Path, key: str, value: str, problem: str) -> None:
    gguf = open_gguf(write_tiny("qwen2", tmp_path / "model.gguf"))
    with pytest.raises(ModelLoadFailed, match=f"model.gguf: is {problem}"):
        read_model_config(msgspec.structs.replace(gguf, metadata={**gguf.metadata, key: value}))


def test_heads_of_a_size_that_no_kernel_has_are_refused_on_a_gpu_and_computed_on_the_cpu(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_model(phi3(2, hidden=768, ffn=256, heads=16, num_regular=300, window=16, q4_0=False), path)
    gguf = open_gguf(path)
    assert read_model_config(gguf).head_dim == 48
    device = DryRunDevice("cuda:0")
    with pytest.raises(ModelLoadFailed, match=r"model.gguf: .*key_length: .* 48 .* 16, 32, 64, .*--device cpu"):
        assemble_model(read_model_config(gguf), Weights(gguf, device), device)
    load(path)


def test_a_vocabulary_beyond_the_sampler_is_refused_on_a_gpu_when_it_is_loaded(tmp_path: Path) -> None:
    gguf = open_gguf(write_tiny("qwen2", tmp_path / "model.gguf"))
    config = msgspec.structs.replace(read_model_config(gguf), vocab_size=1 << 19)
    device = DryRunDevice("cuda:0")
    with pytest.raises(ModelLoadFailed, match=r"model.gguf: the vocabulary has 524,288 tokens, .* 520,192; .*cpu"):
        assemble_model(config, Weights(gguf, device), device)


MIXES = {
    "Q8_0": ("Q8_0",),
    "Q4_0": ("Q4_0", "Q6_K", "F16"),
    "Q4_K_M": ("Q4_K", "Q6_K", "Q5_0", "Q8_0"),
    "Q3_K_M": ("Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0"),
    "UD-Q4_K_XL": ("Q4_K", "Q5_K", "Q6_K", "Q8_0", "IQ4_XS"),
    "UD-Q2_K_XL": ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
    "IQ4_XS": ("IQ4_XS", "Q5_K", "Q6_K", "IQ4_NL"),
    "IQ3_M": ("IQ3_S", "Q4_K", "Q6_K", "IQ4_NL"),
    "IQ2_M": ("IQ2_S", "IQ3_S", "Q4_K", "Q5_K", "IQ4_NL"),
    "MXFP4": ("MXFP4", "Q8_0", "BF16"),
}
"""What is in files that are named so, beside F32."""


def test_the_table_of_files_says_what_is_known_of_architectures_types_and_tokenizers() -> None:
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\S+) (\S+) \| `(\S+)` \| `(\S+)` \| (yes|no)(: .+)? \|$", page, re.MULTILINE)
    assert len(rows) == 40
    for name, mix, architecture, words, runs, reason in rows:
        assert set(MIXES[mix]) <= set(FORMATS), name
        is_known = architecture in ARCHITECTURES and words in {*PRE_TOKENIZERS, "llama", "gemma4"}
        assert is_known if runs == "yes" else reason, name
